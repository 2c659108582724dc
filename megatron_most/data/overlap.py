"""Whether rows of a corpus share speakers, recordings or wording with sets that models are evaluated on.

In: evaluation sets (manifest folders, .jsonl or .txt files) and the rows of a corpus. Out: what each row shares with
which set. Texts are compared as runs of n words without case and punctuation. An item shorter than n words is one run
of its own length; under 4 words (the single words of sWUGGY) it matches only a row whose whole text it is.
Runs are kept as 64-bit hashes that are equal in every process, so nothing shared goes unseen, and by chance one run in
10^12 is taken for one of ten million. A word is what spaces separate: Chinese or Japanese match by whole sentences.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron_most.data.manifest import load_json_line, open_manifest
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import ChatRow, Row, TextRow, Utterance
from megatron_most.errors import DataError
from megatron_most.runtime import cannot_read, open_file

Hashes = NDArray[np.uint64]

FEWEST_WORDS = 4  # shorter items are everyday phrases: inside a longer text they prove nothing
MOST_WORDS = 64
_BLOCK = 1 << 14  # windows hashed at a time, which bounds the memory a long document takes
_MOST_TOKENS = 1 << 18  # remembered hashes: some 50 MB
_LONGEST_TOKEN = 64
_BITS_PER_KEY = 16
_APOSTROPHES = dict.fromkeys(map(ord, "'‘’ʼ`´′＇"))  # don't and don’t are one word, dont

# The key of words w_0 .. w_{L-1} is (sum_i w_i B^i) xor L G mod 2^64; B is odd, so it has an inverse and the key of any
# window is (S_{p+L} - S_p) B^-p of the running sums S. B = 5 mod 8 keeps B^k - 1 from having many factors 2.
_B, _G = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
_NONE = np.zeros(0, np.uint64)


def _powers(base: int) -> Hashes:
    steps = np.full(_BLOCK + MOST_WORDS, base, np.uint64)
    steps[0] = 1
    return np.multiply.accumulate(steps)


_LENGTH_KEYS = np.arange(MOST_WORDS + 1, dtype=np.uint64) * np.uint64(_G)
_POWERS, _INVERSES = _powers(_B), _powers(pow(_B, -1, 1 << 64))


def normalised_words(text: str) -> list[str]:
    """The words compared: NFKC, no case, no apostrophes; any other sign ends a word."""
    return [word for token in text.split() for word in _words_of_token(token)]


def _words_of_token(token: str) -> list[str]:
    if token.isascii() and token.isalnum():
        return [token.lower()]
    folded = unicodedata.normalize("NFKC", token.translate(_APOSTROPHES)).casefold()
    folded = unicodedata.normalize("NFKC", folded).translate(_APOSTROPHES)
    kept = []
    for sign in folded:
        category = unicodedata.category(sign)
        if category != "Cf":  # soft hyphens and joiners are not seen
            kept.append(sign if category[0] in "LMN" else " ")
    return [word for word in "".join(kept).split() if any(map(str.isalnum, word))]


class _TokenHashes(dict[str, bytes]):
    """What a token between spaces is made of: the 8-byte hash of each of its words, none for a lone dash."""

    def __missing__(self, token: str) -> bytes:
        words = _words_of_token(token)
        found = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
        if len(token) <= _LONGEST_TOKEN:
            if len(self) >= _MOST_TOKENS:
                self.clear()
            self[token] = found
        return found


_token_hashes = _TokenHashes()


def _word_hashes(text: str) -> Hashes:
    return np.frombuffer(b"".join(map(_token_hashes.__getitem__, text.split())), "<u8")


def _windows(words: Hashes, lengths: Sequence[int]) -> Iterator[tuple[int, list[Hashes]]]:
    """Blocks of (place of the first window, for each length the keys of the windows from there on)."""
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK + max(lengths, default=0)]
        sums = np.zeros(len(block) + 1, np.uint64)
        np.cumsum(block * _POWERS[: len(block)], out=sums[1:])
        # a length beyond the block gives empty slices on both sides
        yield (
            start,
            [
                (sums[length:] - sums[:-length]) * _INVERSES[: max(len(sums) - length, 0)] ^ _LENGTH_KEYS[length]
                for length in lengths
            ],
        )


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """What training data should not hold of one evaluation set."""

    name: str
    n: int
    ngrams: Hashes
    """Keys of the word runs, sorted, each once; the length of a run is part of its key."""
    lengths: tuple[int, ...]
    """The lengths, in words, that these runs have: n and those of shorter items."""
    speakers: frozenset[str]
    recordings: frozenset[str]
    num_texts: int

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all that decides what overlaps; the name does not."""
        found = hashlib.sha256(f"{self.n} {self.lengths}".encode() + self.ngrams.astype("<u8").tobytes())
        found.update(json.dumps([sorted(self.speakers), sorted(self.recordings)]).encode())
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a row shares with an evaluation set: a speaker's or a recording's id, or words (the first run found)."""

    set_name: str
    kind: Literal["speaker", "recording", "text"]
    what: str


class OverlapFinder:
    """Compares rows with evaluation sets. A run is looked up in a table of bits, and searched if its bits are there."""

    def __init__(self, sets: Iterable[EvaluationSet]) -> None:
        self.sets = tuple(sets)
        names = [evaluation.name for evaluation in self.sets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"evaluation set {twice[0]!r}: given twice; give each set a name of its own")
        lengths = sorted({length for evaluation in self.sets for length in evaluation.lengths}, reverse=True)
        self._lengths = tuple(length for length in lengths if length >= FEWEST_WORDS)  # longest first
        self._keys = _sorted_once(np.concatenate([_NONE, *(evaluation.ngrams for evaluation in self.sets)]))
        bits = (_BITS_PER_KEY * len(self._keys) // 64).bit_length()
        self._table = np.zeros(1 << bits, np.uint64)
        self._shift = np.uint64(min(64 - bits, 63))  # 64 would be undefined
        np.bitwise_or.at(self._table, self._places(self._keys), _bits(self._keys))

    def find(self, row: Row) -> tuple[Overlap, ...]:
        """All that the row shares, set by set: speaker, recording, words. Speech inside a chat is not looked at."""
        words = self._shared_words(list(_texts(row)))
        found = []
        for evaluation in self.sets:
            if isinstance(row, Utterance):
                if row.speaker in evaluation.speakers:
                    found.append(Overlap(evaluation.name, "speaker", str(row.speaker)))
                if row.recording in evaluation.recordings:
                    found.append(Overlap(evaluation.name, "recording", row.recording))
            if evaluation.name in words:
                found.append(Overlap(evaluation.name, "text", words[evaluation.name]))
        return tuple(found)

    def _shared_words(self, texts: list[str]) -> dict[str, str]:
        """A shared run of words for each set that has one."""
        hashes = [_word_hashes(text) for text in texts]
        size = sum(map(len, hashes))
        if size < FEWEST_WORDS:  # short texts count as a whole
            texts, hashes = [" ".join(texts)], [np.concatenate([_NONE, *hashes])]
        lengths = self._lengths if size >= FEWEST_WORDS else (size,)
        found: dict[str, str] = {}
        for text, words in zip(texts, hashes, strict=True):
            for start, windows in _windows(words, lengths):
                keys = np.concatenate([_NONE, *windows])
                bits = _bits(keys)
                maybe = np.flatnonzero((self._table[self._places(keys)] & bits) == bits)
                shared = maybe[_is_in(keys[maybe], self._keys)]
                for evaluation in self.sets if len(shared) else ():
                    hits = shared[_is_in(keys[shared], evaluation.ngrams)]
                    if len(hits) and evaluation.name not in found:
                        at, which = int(hits[0]), 0
                        while at >= len(windows[which]):
                            at, which = at - len(windows[which]), which + 1
                        run = normalised_words(text)[start + at : start + at + lengths[which]]
                        found[evaluation.name] = " ".join(run)
        return found

    def _places(self, keys: Hashes) -> Hashes:
        return (keys >> self._shift) & np.uint64(len(self._table) - 1)


def load_evaluation_set(name: str, path: Path | str, n: int = 13, fields: Sequence[str] = ()) -> EvaluationSet:
    """Read a manifest folder, a .jsonl of objects or a .txt with an item a line (either may end in .gz).

    Of an object every text at any depth is an item by itself, or only those in `fields`, which every object must have.
    """
    if not name or not name.isprintable():
        raise DataError(f"evaluation set {name!r}: not a printable name; give it one, such as librispeech-test-clean")
    if not FEWEST_WORDS <= n <= MOST_WORDS:
        raise DataError(f"evaluation set {name}: n = {n} words; give {FEWEST_WORDS} to {MOST_WORDS}")
    path = Path(path)
    speakers: set[str] = set()
    recordings: set[str] = set()
    keys: dict[int, bytearray] = {}
    num_texts = 0
    for item in _items(path, fields, speakers, recordings):
        words = _word_hashes(item)
        if not len(words):
            continue
        num_texts += 1
        length = min(len(words), n)
        collected = keys.setdefault(length, bytearray())
        for _, [found] in _windows(words, (length,)):
            collected += found.tobytes()
    if not num_texts and not speakers and not recordings:
        raise DataError(f"{path}: evaluation set {name} holds no words, speakers or recordings; check path and fields")
    return EvaluationSet(
        name=name,
        n=n,
        ngrams=_sorted_once(np.frombuffer(b"".join(keys.values()), np.uint64)),
        lengths=tuple(sorted(keys)),
        speakers=frozenset(speakers),
        recordings=frozenset(recordings),
        num_texts=num_texts,
    )


def _texts(row: Row) -> Iterator[str]:
    """The texts whose words follow each other: a transcript, a document, or what stands between speech in one turn."""
    if isinstance(row, ChatRow):
        for turn in row.turns:
            for is_text, parts in groupby(turn.parts, key=lambda part: isinstance(part, str)):
                if is_text:
                    yield " ".join(map(str, parts))
    elif isinstance(row, TextRow) or row.text is not None:
        yield row.text or ""


def _items(path: Path, fields: Sequence[str], speakers: set[str], recordings: set[str]) -> Iterator[str]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path of the evaluation set")
    if path.is_dir():
        if fields:
            raise DataError(f"{path}: a manifest has no fields to choose; leave out {', '.join(fields)}")
        manifest = open_manifest(path)
        manifest.verify()
        for row in manifest.rows():
            if isinstance(row, Utterance):
                recordings.add(row.recording)
                if row.speaker:
                    speakers.add(row.speaker)
            yield from _texts(row)
    elif suffix == ".jsonl":
        for number, line in _lines(path):
            try:
                row_object = load_json_line(line)
            except RowError as error:
                raise DataError(f"{path}:{number}: {error}; mend the line") from error
            for field in fields:
                if field not in row_object:
                    known = ", ".join(sorted(row_object)) or "none"
                    raise DataError(f"{path}:{number}: no field {field!r}; the fields are: {known}"[:500])
            yield from _strings([row_object[field] for field in fields] if fields else row_object)
    elif suffix == ".txt":
        if fields:
            raise DataError(f"{path}: plain text has no fields to choose; leave out {', '.join(fields)}")
        for number, line in _lines(path):
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: invalid UTF-8, byte {error.start} of the line; convert the file"
                ) from error
    else:
        raise DataError(
            f"{path}: not an evaluation set that can be read; give a manifest folder, .jsonl, .txt, or these with .gz"
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of lines that are not blank."""
    try:
        with open_file(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise cannot_read(path, error, "check the path, or fetch the file again") from error


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:  # not recursive: the depth is the file's choice
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _bits(keys: Hashes) -> Hashes:
    """Three of 64 bits for each key; the upper bits of a key are its place in the table."""
    found = np.zeros(len(keys), np.uint64)
    for shift in (0, 6, 12):
        found |= np.uint64(1) << ((keys >> np.uint64(shift)) & np.uint64(63))
    return found


def _sorted_once(keys: Hashes) -> Hashes:
    """np.unique, whose hash table takes 20 times as long on millions of keys (numpy 2.4)."""
    keys = np.sort(keys)
    return keys[np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]])]


def _is_in(keys: Hashes, ordered: Hashes) -> NDArray[np.bool_]:
    """np.isin for few keys and many sorted values."""
    if not len(ordered):
        return np.zeros(len(keys), bool)
    return ordered[np.searchsorted(ordered, keys).clip(max=len(ordered) - 1)] == keys
