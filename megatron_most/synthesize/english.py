"""Whether a text is English, as far as spelling shows: for the rules of speech here are those of English.

Three signs: nearly all letters are Latin without marks; the small words of English are not outnumbered by those of its
neighbours; and, where there are words enough to tell, there are
some. A name or a short answer is held to the first two.
"""

from __future__ import annotations

import re
import unicodedata

from megatron_most.data.rejects import RowError
from megatron_most.synthesize.numbers import NUMBER_WORDS

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_ENOUGH = 12  # words, below which a proper English answer may have no small word at all
_FEWEST = 0.12  # share of small words; English prose has 0.35 to 0.55, other Latin languages below 0.08
_FOREIGN = 0.1  # share of letters that are not a to z: names and loan words stay below
_SIGNS = frozenset("dot slash dash underscore plus minus equals times percent per squared cubed star port".split())
SMALL = frozenset(
    "the of and to in is it you that was for on are with as they at be this have from or had by not but what all "
    "were we when your can there an how which do if will about out many then them these so some would like into has "
    "more could no than been who its now did get may i he she his her my me our us their a i'm it's don't that's "
    "what's let's tell me more know here think one time good see say said go going make any only very much how "
    "you're i'd i'll we'll can't isn't doesn't didn't yes please thanks just".split()
)
_OF_OTHERS = frozenset(
    "der die das und ist nicht ein eine einen zu den dem mit von auf für im sich auch wie wird sind oder aber wenn "
    "nach bei le la les des et est une un pas dans que pour sur qui ce il elle avec sont ne au du mais nous "
    "vous je el los las y es una por con para del se lo su como pero más muy está son al esta todo cuando di che "
    "non sono il gli della nel anche het een van niet voor zijn met ook maar deze wordt o os em um uma não com "
    "mais são pelo och att det som är inte på jest nie że się na".split()
)


def check_english(text: str) -> None:
    """RowError "not English", with what was seen."""
    letters = [sign for sign in text if sign.isalpha()]
    foreign = sum(1 for sign in letters if not _is_plain(sign))
    if letters and foreign > _FOREIGN * len(letters):
        scripts = sorted({unicodedata.name(sign, "?").split()[0] for sign in letters if not _is_plain(sign)})
        raise RowError("not English", f"{foreign} of {len(letters)} letters are {', '.join(scripts)[:60]}")
    words = [word.lower().replace("’", "'") for word in _WORD.findall(text)]
    # Figures and signs read out tell nothing: "six", "plus" and "per" are as good in French and Italian.
    words = [word for word in words if word not in NUMBER_WORDS | _SIGNS]
    small = sum(word in SMALL for word in words)
    others = sum(word in _OF_OTHERS for word in words)
    if others > max(small, 1):
        raise RowError("not English", f"{others} of {len(words)} words are small words of other languages")
    if len(words) >= _ENOUGH and small < _FEWEST * len(words):
        raise RowError("not English", f"{small} of {len(words)} words are small words of English")


def _is_plain(sign: str) -> bool:
    return "a" <= sign.lower() <= "z"
