"""Written English as it is spoken: no markup, no figures, no signs that nobody can say.

"On 3/4/2024 Dr. Lee paid $3.50 (see www.a.org)" -> "On March fourth, twenty twenty-four Doctor Lee paid three dollars
fifty cents, see a dot org". The rules run in a fixed order, the more special first; what is still no word at the end is
an error of kind "not speakable", never a guess. The result holds letters, apostrophes, hyphens and . , ? ! : ; — only,
and is unchanged when it goes through again. Other languages are refused (english.py).
"""

from __future__ import annotations

import re
import unicodedata

from megatron_most.data.normalise import unicode_nfc
from megatron_most.data.rejects import RowError
from megatron_most.synthesize.addresses import ADDRESSES
from megatron_most.synthesize.codelike import refuse_code
from megatron_most.synthesize.english import check_english
from megatron_most.synthesize.figures import FIGURES, thousands_joined
from megatron_most.synthesize.markdown import without_markup
from megatron_most.synthesize.roman import ROMAN

_SIGNS = str.maketrans(
    {
        "‘": "'", "’": "'", "ʼ": "'", "´": "'", "′": "'", "″": '"', "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
        "–": "-", "‐": "-", "‑": "-", "−": "-", "…": "...", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
        "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "²": "^2", "³": "^3", "·": " ", "•": " ",
    }
)  # fmt: skip
_LONGEST = 8000
"""Characters; nobody listens to more at a time, and no rule has to be fast beyond it."""
_ROUNDS = 8
_NAMED = {
    "Dr": "Doctor", "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Prof": "Professor", "St": "Saint", "Mt": "Mount",
    "Gen": "General", "Sen": "Senator", "Rev": "Reverend", "Capt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant",
}  # fmt: skip
_BEFORE_NAME = re.compile(rf"\b({'|'.join(_NAMED)})\.\s+(?=[A-Z])")
_ABBREVIATIONS = {
    "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "vs": "versus", "cf.": "compare",
    "approx.": "approximately", "a.m.": "a m", "p.m.": "p m", "U.S.A.": "U S A", "U.S.": "U S", "U.K.": "U K",
    "Jr.": "Junior", "Sr.": "Senior", "Inc.": "Incorporated", "Ltd.": "Limited", "Co.": "Company",
    "dept.": "department",
    "est.": "established", "w/o": "without", "w/": "with", "aka": "also known as", "FYI": "for your information",
    "ASAP": "as soon as possible", "Ave.": "Avenue", "Blvd.": "Boulevard", "Rd.": "Road", "et al.": "and others",
    "Ph.D.": "P H D", "B.C.": "B C", "A.D.": "A D",
    "n/a": "not applicable", "N/A": "not applicable",
}  # fmt: skip
_ABBREVIATION = re.compile(
    r"(?<![\w.])(" + "|".join(re.escape(a) for a in sorted(_ABBREVIATIONS, key=len, reverse=True)) + r")(?!\w)(,?)"
)
_MONTHS = dict(zip("Jan Feb Mar Apr Jun Jul Aug Sept Sep Oct Nov Dec".split(),
    "January February March April June July August September September October November December".split(),
    strict=True))  # fmt: skip
_MONTH = re.compile(rf"\b({'|'.join(_MONTHS)})\.?(?=\s+\d)")
_NUMBER_SIGN = re.compile(r"(?:#|\b[Nn]o\.|№)\s?(?=\d)")
_SMILEYS = [
    (re.compile(r"\b(I|[Ww]e|[Yy]ou|[Tt]hey) <3 "), r"\1 love "),
    (re.compile(r"(?<=\s)(?:[:;=]['-]?[)(DPpO|*\]]+|<3+)(?=[\s.,!?]*(?:$|\n))", re.M), ""),
    (re.compile(r"(?<=\s)[:;=]['-]?[)(DPp]+(?!\S)"), ""),
]
_BEFORE_FIGURE = [
    (re.compile(r"(?<=\d)\s?~\s?(?=\d)"), "-"),
    (re.compile(r"(?<=\d)\s?\*\s?(?=\d)"), " times "),
    (re.compile(r"(?<![\w~)])[~≈]\s?(?=[\d$£€])"), "about "),
    (re.compile(r"(?:±|\+/-)\s?(?=\d)"), "plus or minus "),
    (re.compile(r"(?<![\w)])≤(?=\d)"), "at most "),
    (re.compile(r"(?<![\w)])≥(?=\d)"), "at least "),
    (re.compile(r"(?<![^\s(])<(?=[\d$£€])"), "less than "),
    (re.compile(r"(?<![^\s(])>(?=[\d$£€])"), "more than "),
]
_SPOKEN_SIGNS = [
    (re.compile(r"\b([Aa]nd)/or\b"), r"\1 or"),
    (re.compile(r"\b(TCP|I|AC|A|CI|GNU)/(IP|O|DC|C|B|CD|Linux)\b"), r"\1 \2"),  # names, no choices
    (re.compile(r"(?<=\w)\s*≈\s*"), " is about "),
    (re.compile(r"\s*&\s*"), " and "),
    (re.compile(r"(?<=\w)\s*\+\s*(?=\w)"), " plus "),
    (re.compile(r"\s*(?:->|→|=>|⇒)\s*"), " to "),
    (re.compile(r"(?<=\w)\s*(?:!=|≠)\s*(?=\w)"), " is not equal to "),
    (re.compile(r"(?<=\w)\s*>=\s*(?=\w)"), " is at least "),
    (re.compile(r"(?<=\w)\s*<=\s*(?=\w)"), " is at most "),
    (re.compile(r"(?<=\b\w)\s*<\s*(?=\w\b)"), " is less than "),
    (re.compile(r"(?<=\b\w)\s*>\s*(?=\w\b)"), " is more than "),
    (re.compile(r"(?<=[a-z])\s>\s(?=[A-Z])|(?<=\w)\s+\|\s+(?=\w)"), ", "),  # a path through menus; columns
    (re.compile(r"\s*==?\s*"), " equals "),
    (re.compile(r"(?<=\b\w)\s*(?:×|\*)\s*(?=\w\b)|(?<=\w)(?:\s×\s|\s\*\s|×)(?=\w)"), " times "),
    (re.compile(r"(?<=\w)\s*÷\s*(?=\w)"), " divided by "),
    (re.compile(r"(?<=\s)@(?=\w)|(?<=\w)\s+@\s+(?=\w)"), " at "),
    (re.compile(r"(?<=[A-Za-z])\s*/\s*(?=[A-Za-z])"), " or "),
    (re.compile(r"(?<=\w)_(?=\w)"), " "),
    (re.compile(r"#(?=[A-Za-z])"), ""),
    (re.compile(r"\+\+"), " plus plus "),
    (re.compile(r"(?<=\b[A-G])#(?!\w)"), " sharp"),
]
_PARENTHESES = re.compile(r"\s*[(\[{]\s*([^()\[\]{}]*?)\s*[)\]}]")
_LEFT = re.compile(r"[^A-Za-zÀ-ÖØ-öø-ÿĀ-ſ'.,?!:;—\s-]")
_GUESSED = re.compile(r"[A-Za-z]\*+(?=[A-Za-z])|[<>](?=\s?[A-Za-z])|[A-Za-z](?:\s?~\s?|\|)[A-Za-z]")
"""Signs that fall silent elsewhere, but not where something was to be said: f*ck, one > another."""
_UNSEEN = {"So", "Sk", "Mn", "Me", "Cn", "Co", "Cf"}
_FIGURE_FIRST = re.compile(r"\W*(?:(?:[Nn]o\.|USD|EUR|GBP)\s?)?\d")
_INITIALS = re.compile(r"\b(?:[A-Z]\.){2,}")


def speakable(text: str, *, drop_code: bool = False) -> str:
    """The text as it is spoken. RowError: "holds code", "holds a table", "holds a formula", "not speakable"."""
    if len(text) > _LONGEST:
        raise RowError("turn too long", f"{len(text)} characters")
    text = without_markup(thousands_joined(unicode_nfc(text)).translate(_SIGNS), drop_code)
    begins_with_figure = _FIGURE_FIRST.match(text) is not None
    for sign, word in _SMILEYS:
        text = sign.sub(word, text)
    for pattern, said in ADDRESSES:
        text = pattern.sub(said, text)
    text = _MONTH.sub(lambda found: _MONTHS[found[1]], text)
    text = _BEFORE_NAME.sub(lambda found: _NAMED[found[1]] + " ", text)
    text = _ABBREVIATION.sub(_abbreviation, text)
    text = _NUMBER_SIGN.sub("number ", text)
    for pattern, words in _BEFORE_FIGURE:
        text = pattern.sub(words, text)
    for pattern, said in (*ROMAN, *FIGURES):
        text = pattern.sub(said, text)
    for sign, word in _SPOKEN_SIGNS:
        text = sign.sub(word, text)
    if found := _GUESSED.search(text):
        raise _not_speakable(found)
    text = _INITIALS.sub(lambda found: found[0].replace(".", " ").strip() + " ", text)
    for _ in range(_ROUNDS):  # taking one sign out can show the next
        if (told := _punctuated(text)) == text:
            break
        text = told
    if found := _LEFT.search(text):
        raise _not_speakable(found)
    if not any(map(str.isalpha, text)):
        raise RowError("nothing to say")
    refuse_code(text)  # which may have come out from under a sign
    text = text[0].upper() + text[1:] if begins_with_figure else text
    # A name or a numeral may stand behind its title only now, or behind a capital.
    text = _BEFORE_NAME.sub(lambda found: _NAMED[found[1]] + " ", text)
    for pattern, said in ROMAN:
        text = pattern.sub(said, text)
    return text


def _not_speakable(found: re.Match[str]) -> RowError:
    near = found.string[max(found.start() - 20, 0) : found.end() + 20].strip()
    return RowError("not speakable", f"{found[0]!r} in {near!r}")


def spoken_english(text: str, *, drop_code: bool = False) -> str:
    """`speakable`, for text that has to be English: what is not is said so first, before its signs trip a rule."""
    check_english(unicode_nfc(text))
    return speakable(text, drop_code=drop_code)


def _abbreviation(found: re.Match[str]) -> str:
    words = _ABBREVIATIONS[found[1]]
    rest = found.string[found.end() :].lstrip()
    # The stop of an abbreviation also ends the sentence where another one begins, or nothing follows.
    ends = found[1].endswith(".") and not found[2] and (not rest or rest[:1].isupper() and found[1] in _CLOSING)
    return words + found[2] + "." * ends


_CLOSING = {"etc.", "a.m.", "p.m.", "Inc.", "Ltd.", "Co.", "Jr.", "Sr.", "et al.", "Ave.", "Blvd.", "Rd."}


def _punctuated(text: str) -> str:
    """Punctuation that a voice can make: brackets are commas, lines end sentences, emoji and quotes go."""
    for _ in range(3):
        text = _PARENTHESES.sub(r", \1,", text)
    text = re.sub(r"\s+-+(?=[\s.,?!:;]|$)|(?<![\w'])-+|\s*—\s*(?=\S)|(?<=\w)---?(?=\w)", " — ", text)
    text = "".join(" " if unicodedata.category(sign) in _UNSEEN else sign for sign in text)
    text = re.sub(r"[\"*|<>^~`]|(?<![A-Za-zÀ-ſ])'|'(?![A-Za-zÀ-ſ])", _quote, text)
    text = _joined([" ".join(line.split()) for line in text.splitlines()])
    if text.endswith("..."):
        text = text.rstrip(".") + "."
    text = re.sub(r"\.{2,}", ",", text)
    text = re.sub(r"\s+([.,?!:;])", r"\1", text)
    text = re.sub(r"[,;:]+(?=[.?!,;:])", "", text)
    text = re.sub(r"([.?!])[?!.,;:]+", r"\1", text)
    text = re.sub(r"([.,?!:;])(?=[A-Za-z])", r"\1 ", text)
    text = re.sub(r"(?:— )+—|[,;:] —|— ?[,;:]", "—", text)
    return " ".join(text.split()).strip(" ,;:-").lstrip(".,?!:;— -")


def _joined(lines: list[str]) -> str:
    """Lines as one: where one ends without a stop and the next begins anew, it was a sentence."""
    lines = [line for line in lines if line]
    ended = [
        line if line[-1] in ".!?,;:—" or after[:1].islower() else f"{line}."
        for line, after in zip(lines, lines[1:], strict=False)
    ]
    return " ".join([*ended, *lines[-1:]])


def _quote(found: re.Match[str]) -> str:
    return "" if found[0] in "\"'*" else " "
