"""Is an answer right? As UltraEval-Audio has it for spoken questions.

exist_match: the tokens of some reference answer stand in a row anywhere in what was said. exact_match: all that was
said is some reference answer, but for case, punctuation and articles; where an answer is nothing else, they count, so
that silence is never right (there UltraEval-Audio has two nothings equal). A token is a run of letters, digits and
combining marks, or any one other visible character. é is the same however it is spelt.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from itertools import groupby

from megatron_most.errors import DataError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exist_match(answers: Sequence[str], said: str) -> bool:
    said_tokens = _tokens(said)
    for answer in answers:
        wanted = _tokens(answer)
        if not wanted:  # it would stand in everything
            raise DataError(f"answer {answer!r}: holds no letter or sign to look for; take it out of the questions")
        if any(said_tokens[at : at + len(wanted)] == wanted for at in range(len(said_tokens) - len(wanted) + 1)):
            return True
    return False


def exact_match(answers: Sequence[str], said: str) -> bool:
    bare = _bare(said)
    return bare != "" and bare in map(_bare, answers)


def _tokens(text: str) -> list[str]:
    """Lower-cased."""
    found: list[str] = []
    for kind, run in groupby(unicodedata.normalize("NFD", text), _kind):
        if kind == "word":
            found.append("".join(run).lower())
        elif kind == "sign":
            found += run
    return found


def _kind(character: str) -> str:
    major = unicodedata.category(character)[0]
    return "word" if major in "LNM" else "blank" if major in "ZC" else "sign"


def _bare(text: str) -> str:
    # Composed: in the decomposed à, \b finds an article before the mark.
    lower = unicodedata.normalize("NFC", text).lower()
    words = lower.translate(_NO_PUNCTUATION)
    left = (" ".join(kept.split()) for kept in (_ARTICLES.sub(" ", words), words, lower))
    return next(filter(None, left), "")
