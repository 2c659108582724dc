"""Tokenising text word by word: each distinct word goes through the tokenizer once, then its ids are looked up.

A byte-level BPE tokenizer first cuts text by regular expressions, and that takes most of its time. For the
pre-tokenizers listed here a piece never reaches across a space that stands between two printable ASCII characters, and
how a side is cut does not depend on the other side, so the ids of a text are those of its words (each with the space
before it) laid end to end. Other pre-tokenizers, and text of other scripts between such spaces, go through whole: there
one piece can hold several words. That both ways give equal ids is a test.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from megatron_most.data.document import Ids

MAX_WORDS = 1 << 18  # about 60 MB
MAX_LETTERS = 40

# What `_fingerprint` makes of pre-tokenizers whose every expression was read: each piece is at most one space (or, in
# Llama's, one sign) and then characters other than the space, or blanks only; no ^, no look-behind; a look-ahead or $
# only after blanks. In DeepSeek's, every printable ASCII character is in the class of one expression, so nothing is
# left uncut on either side of the space.
PROVEN = {
    "fb7485319faf669d": "DeepSeek-V2",
    "d21225886d805a0e": "Llama 3",
    "f8b6e8423beeae89": "Qwen 2",
    "cceec913931c6ebc": "GPT-2",
    "0db4d5b215a08bd7": "fit_tokenizer",
}
_split_words = re.compile("[ ](?=[!-~])(?<=[!-~] )").split


def words_are_independent(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is one whose text can be tokenised word by word."""
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer")
    if model.get("type") != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix"):
        return False
    if normalizer not in (None, {"type": "NFC"}, {"type": "Sequence", "normalizers": []}):
        return False
    if any(not token["special"] for token in tokenizer.get("added_tokens", ())):  # these are matched before cutting
        return False
    return _fingerprint(tokenizer.get("pre_tokenizer")) in PROVEN


def _fingerprint(pre_tokenizer: dict[str, Any] | None) -> str:
    steps = []
    for step in _steps(pre_tokenizer or {}):
        step = {key: value for key, value in step.items() if key != "trim_offsets"}  # offsets are not used
        steps.append(json.dumps(step, sort_keys=True))
    return hashlib.sha256("\n".join(steps).encode()).hexdigest()[:16]


def _steps(pre_tokenizer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if pre_tokenizer.get("type") == "Sequence":
        for inner in pre_tokenizer["pretokenizers"]:
            yield from _steps(inner)
    else:
        yield pre_tokenizer


class WordTokenizer:
    """`encode` on whole texts by `encode` on words, of which the first `max_words` are kept."""

    def __init__(self, encode: Callable[[Sequence[str]], list[Ids]], max_words: int = MAX_WORDS) -> None:
        self._encode, self._max_words = encode, max_words
        self._kept: dict[str, bytes] = {}

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        first: list[str] = []  # word of each text, which has no space before it
        rest: list[list[str]] = []
        for text in texts:
            words = _split_words(text)
            first.append(words[0])
            rest.append(words[1:])
        kept = self._kept
        new = list(set(chain.from_iterable(rest)).difference(kept))
        found = [ids.tobytes() for ids in self._encode([*first, *(" " + word for word in new)])]
        kept.update(zip(new, found[len(first) :], strict=True))
        documents = [
            np.frombuffer(bytearray().join(chain((begin,), map(kept.__getitem__, words))), np.int32)
            for begin, words in zip(found, rest, strict=False)  # the first words' ids come first
        ]
        is_full = len(kept) > self._max_words
        for word in new:
            if is_full or len(word) > MAX_LETTERS or "\n" in word:  # the latter two hardly come again
                del kept[word]
        return documents
