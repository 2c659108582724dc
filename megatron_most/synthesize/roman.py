"""Roman numerals and how they are said: Chapter IV -> Chapter four, Louis XIV -> Louis the fourteenth.

Letters that may as well be a word or an abbreviation (I, IV for a drip, XL, MIX) are read as a numeral only behind a
word that wants a number, or behind the name of a ruler.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from megatron_most.synthesize.numbers import cardinal, ordinal

_HEADS = (
    "Chapter Part Volume Vol\\. Book Act Scene Section Article Title Phase Stage Type Class Grade Figure Table "
    "Appendix War Episode Season Bowl Schedule Tier Canto Sonnet Symphony Mark Lesson Amendment Psalm"
).split()
_RULERS = (
    "Louis Henry Edward George Charles James William Richard Elizabeth Mary Philip Francis Frederick Nicholas "
    "Alexander Catherine Ivan Peter Paul John Benedict Pius Leo Gregory Clement Innocent Urban Napoleon Ramses "
    "Ramesses Ptolemy Darius Xerxes Wilhelm Gustav Christian Haakon Harald Carl Alfonso Felipe Pedro Otto Leopold "
    "Albert Murad Constantine Theodosius Justinian Basil Cleopatra Boniface Sixtus Julius Thutmose Amenhotep Selim "
    "Umberto"
).split()
_VALUES = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}
_ANY = r"(?=[CLXVI])(?:C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
_SURE = r"(?:X{0,2}(?:VI{1,3}|I{2,3}|IX)|X{1,2}(?:I?V|I))"  # no word, no abbreviation
_PLAIN = "The An A This That Her His Their Your My Our In On And Or But If When With For Of By Is At As".split()
_NO_WORD = r"(?=\s*(?:[.,;:!?)]|$|of\b))"  # "Mary I" is a queen, but "Mary I think" is none
_NUMERAL = rf"(?!(?:[CL]\b|[IVX]\.\s[A-Z]))(?:I{_NO_WORD}|(?!I\b){_ANY})"  # nor "Grade C", nor "John V. Smith"


def value(numeral: str) -> int:
    """Of a well-formed one: XIV -> 14."""
    found = [_VALUES[letter] for letter in numeral]
    return sum(-one if one < after else one for one, after in zip(found, [*found[1:], 0], strict=True))


def _counted(found: re.Match[str]) -> str:
    return f"{found[1]} {cardinal(value(found[2]))}"


def _ruler(found: re.Match[str]) -> str:
    return f"{found[1]} the {ordinal(value(found[2]))}"


ROMAN: list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = [
    (re.compile(rf"\b({'|'.join(_RULERS)})\s({_NUMERAL})(?![\w-])"), _ruler),
    (re.compile(r"\b(World [Ww]ar)\s(I)(?![\w'’-])"), _counted),
    (re.compile(rf"\b({'|'.join(_HEADS)})\s({_NUMERAL})(?![\w-])"), _counted),
    (re.compile(rf"\b([Tt]he)\s({_ANY})(?=\s[Cc]entur)"), lambda found: f"{found[1]} {ordinal(value(found[2]))}"),
    (re.compile(rf"\b(?!(?:{'|'.join(_PLAIN)})\s)([A-Z][a-z]+)\s({_SURE})(?![\w-])"), _counted),
]
