"""A dataset proved whole: sizes and hashes of all files, every id and tag, every count; and Core reads the same.

Ids stream through the memory map in pieces while another thread takes the hashes. Problems are gathered, not raised one
at a time: the first twenty in words and how many there are in all, since one flipped byte and a wrong token map look
alike from the first problem only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_most.data.dataset import dtype_for, find_repeated, load_info
from megatron_most.data.dataset_info import INFO, REJECTS, DatasetInfo
from megatron_most.data.indexed import BIN, IDS, IDX, IndexedDocuments, Sequences, is_trained_mode, tag_of_mode
from megatron_most.data.spans import SpanTable
from megatron_most.errors import DataError, UpstreamError
from megatron_most.runtime import Meter, sha256_file
from megatron_most.vocab import OUTSIDE, TAG_NAMES, tag_id

_SHOWN = 20
_TOKENS_AT_ONCE = 1 << 19
_CORE_DOCUMENTS = 64


@dataclass(frozen=True)
class Verified:
    """What was found."""

    folder: Path
    documents: int
    sequences: int
    tokens: int
    with_core: bool
    """Stock Megatron-Core read it too."""
    problems: tuple[str, ...]
    """The first 20 in words; none where the dataset is whole."""
    num_problems: int

    @property
    def is_whole(self) -> bool:
        return not self.num_problems

    def __str__(self) -> str:
        core = "; Megatron-Core reads the same" if self.with_core and self.is_whole else ""
        found = f"{self.documents:,} documents, {self.sequences:,} sequences, {self.tokens:,} tokens{core}"
        if self.is_whole:
            return found
        lines = [f"{self.num_problems:,} problem{'s' * (self.num_problems > 1)} in {found}:", *self.problems]
        if self.num_problems > len(self.problems):
            lines.append(f"and {self.num_problems - len(self.problems):,} more")
        return "\n  ".join(lines)


def verify(folder: Path | str, *, with_core: bool = False) -> Verified:
    """Raise DataError with the list of problems where there is any."""
    found = find_problems(folder, with_core=with_core)
    if not found.is_whole:
        raise DataError(f"{folder}: not whole: {found}\ncopy the data set here again, or build it again")
    return found


def find_problems(folder: Path | str, *, with_core: bool = False) -> Verified:
    """Read all of a dataset. `with_core` opens it with Megatron-Core too, whose import takes seconds."""
    folder = Path(folder)
    problems, in_tokens = _Problems(), _Problems()
    documents = None
    try:
        info = load_info(folder)
    except DataError as error:
        return Verified(folder, 0, 0, 0, False, (str(error),), 1)
    with ThreadPoolExecutor(1) as pool:
        present = [name for name in info.files if _has_size(folder / name, info.files[name][0], problems)]
        hashes = {name: pool.submit(sha256_file, folder / name) for name in present}
        try:
            documents = IndexedDocuments(folder)
        except DataError as error:
            problems.add(str(error))
        if documents is not None:
            _check_content(info, documents, problems, in_tokens)
            if IDS in present:
                _check_ids(folder / IDS, len(documents), problems)
            if with_core and len(documents):
                _check_core(documents, problems)
        if REJECTS in present:
            _check_rejects(folder / REJECTS, info, problems)
        for name, hashing in hashes.items():
            try:
                if hashing.result() != info.files[name][1]:
                    problems.add(f"{folder / name}: its sha256 is not that of {INFO}: bytes have changed")
            except OSError as error:
                problems.add(f"{folder / name}: cannot be read: {error.strerror or error}")
    problems.add_many(in_tokens.count, in_tokens.texts)  # last: a wrong file may have millions
    if documents is None:
        return Verified(folder, 0, 0, 0, False, tuple(problems.texts), problems.count)
    sizes = (len(documents), documents.num_sequences, len(documents.tokens))
    documents.close()
    return Verified(folder, *sizes, with_core, tuple(problems.texts), problems.count)


class _Problems:
    """Counts all, keeps the first in words."""

    def __init__(self) -> None:
        self.count = 0
        self.texts: list[str] = []

    def add(self, text: str) -> None:
        self.add_many(1, [text])

    def add_many(self, count: int, texts: Iterable[str]) -> None:
        """`texts` may be lazy: only as many are made as are shown."""
        self.count += count
        self.texts += islice(texts, _SHOWN - len(self.texts))


def _has_size(path: Path, size: int, problems: _Problems) -> bool:
    try:
        found = path.stat().st_size
        with open(path, "rb"):
            pass
    except OSError as error:
        problems.add(f"{path}: cannot be read: {error.strerror or error}")
        return False
    if found != size:
        problems.add(f"{path}: {found} bytes, but {INFO} says {size}")
    return True


def _check_content(info: DatasetInfo, documents: IndexedDocuments, problems: _Problems, in_tokens: _Problems) -> None:
    """Ids against the token map, sequence by sequence; then the counts."""
    tag_of_id = np.array(info.tokens.tag_table(), np.int8)
    if info.codec is not None:  # units the codec does not have are no units of this dataset
        tag_of_id[info.tokens.first_unit_id + info.codec.num_units : info.tokens.unit_ids.stop] = OUTSIDE
    if info.frames is not None:  # a frame has an id of the marks, under a tag of its own
        tag_of_id[info.tokens.begin_wave_id] = tag_id(str(info.options["frames_tag"]))
        _check_frames(info, documents, problems)
    if documents.dtype != dtype_for(info.tokens):
        problems.add(
            f"{documents.folder / IDX}: ids are {documents.dtype}, but the vocabulary needs {dtype_for(info.tokens)}"
        )
    sums = _Sums()
    token = 0
    with Meter(len(documents.tokens), f"verify {documents.folder.name}", _tokens) as meter:
        for chunk in documents.chunks():
            _check_runs(chunk, sums.documents, documents.folder / IDX, in_tokens)
            for first, ids, tags in _pieces(chunk, documents.tokens[token:]):
                if (wrong := _wrong_ids(ids, tags, tag_of_id)) is not None:
                    place = (token + first, sums.documents, np.cumsum(chunk.lengths, dtype=np.int64) + token)
                    texts = (_describe(at, ids, tags, tag_of_id, chunk, *place) for at in wrong.tolist())
                    in_tokens.add_many(len(wrong), (f"{documents.folder / BIN}: {text}" for text in texts))
                meter.advance(len(ids))
            token += int(chunk.lengths.sum(dtype=np.int64))
            sums.add(chunk)
    for name, counted in sums.named().items():
        if (said := getattr(info, name)) != counted:
            problems.add(f"{documents.folder / INFO}: {name} = {said}, but {counted} in the data")


def _check_frames(info: DatasetInfo, documents: IndexedDocuments, problems: _Problems) -> None:
    """Frames stand where the spans say, and nowhere else."""
    try:
        table = SpanTable(documents.folder, documents.lengths)
    except DataError as error:
        problems.add(str(error))
        return
    begins = np.cumsum(documents.lengths) - documents.lengths
    said = begins[table.records["document"]] + table.records["place"]
    frames, found, before = table.records["frames"].astype(np.int64), 0, 0
    for at in range(0, len(documents.tokens), _TOKENS_AT_ONCE):
        found += int((documents.tokens[at : at + _TOKENS_AT_ONCE] == info.tokens.begin_wave_id).sum())
    wave = info.tokens.begin_wave_id
    for first, count in zip(said.tolist(), frames.tolist(), strict=True):
        before += int((documents.tokens[first : first + count] == wave).sum())
    if not found == before == int(frames.sum()):
        problems.add(
            f"{documents.folder / BIN}: {found} places of frames, {before} of them within the spans of "
            f"{int(frames.sum())} frames"
        )


def _pieces(chunk: Sequences, tokens: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any], NDArray[np.int8]]]:
    """(place in `tokens`, ids, the tag that each should have) of the chunk's tokens, a bounded number at a time."""
    ends = np.cumsum(chunk.lengths, dtype=np.int64)
    tags = tag_of_mode(chunk.modes)
    total = int(ends[-1])
    for first in range(0, total, _TOKENS_AT_ONCE):
        last = min(first + _TOKENS_AT_ONCE, total)
        here = slice(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(ends, last)) + 1)
        lengths = np.minimum(ends[here], last) - np.maximum(ends[here] - chunk.lengths[here], first)
        yield first, tokens[first:last], np.repeat(tags[here], lengths)


def _wrong_ids(ids: NDArray[Any], tags: NDArray[np.int8], tag_of_id: NDArray[np.int8]) -> NDArray[np.int64] | None:
    """Where ids are beyond the vocabulary or have another tag."""
    numbers = ids.view(np.uint32) if ids.dtype == np.int32 else ids  # a negative id is then beyond it too
    if int(numbers.max()) < len(tag_of_id):
        found = tag_of_id.take(numbers)
    else:
        found = np.where(numbers < len(tag_of_id), tag_of_id.take(numbers, mode="clip"), OUTSIDE)
    wrong = found != tags
    return np.flatnonzero(wrong) if wrong.any() else None


def _describe(
    at: int, ids: NDArray[Any], tags: NDArray[np.int8], tag_of_id: NDArray[np.int8],
    chunk: Sequences, token: int, document: int, ends: NDArray[np.int64],
) -> str:  # fmt: skip
    sequence = int(np.searchsorted(ends, token + at, "right"))
    document += int(np.searchsorted(np.cumsum(chunk.counts), sequence, "right"))
    token_id, tag = int(ids[at]), TAG_NAMES[tags[at]]
    where = f"token {token + at} (document {document}): id {token_id}"
    if not 0 <= token_id < len(tag_of_id):
        return f"{where} is outside the vocabulary of {len(tag_of_id)}, in a sequence tagged {tag}"
    if tag_of_id[token_id] == OUTSIDE:
        return f"{where} is used by neither the token map nor the codec, in a sequence tagged {tag}"
    return f"{where} is {TAG_NAMES[tag_of_id[token_id]]}, in a sequence tagged {tag}"


def _check_runs(chunk: Sequences, document: int, path: Path, problems: _Problems) -> None:
    """Neighbouring sequences of a document differ in mode: else they are one."""
    same = chunk.modes[1:] == chunk.modes[:-1]
    last = np.cumsum(chunk.counts)
    same[last[:-1] - 1] = False
    if same.any():
        wrong = np.searchsorted(last, np.flatnonzero(same), "right") + document
        texts = (f"{path}: document {number}: two neighbouring sequences have one mode" for number in wrong.tolist())
        problems.add_many(len(wrong), texts)


class _Sums:
    """The counts of `dataset.json`, from the index."""

    def __init__(self) -> None:
        self.documents = self.sequences = self.longest = self.trained = 0
        self.by_tag = [0] * len(TAG_NAMES)

    def add(self, chunk: Sequences) -> None:
        starts = np.cumsum(chunk.counts) - chunk.counts
        lengths, tags = chunk.lengths.astype(np.int64), tag_of_mode(chunk.modes)
        self.documents += len(chunk.counts)
        self.sequences += len(lengths)
        self.longest = max(self.longest, int(np.add.reduceat(lengths, starts).max()))
        self.by_tag = [n + int(lengths[tags == tag].sum()) for tag, n in enumerate(self.by_tag)]
        self.trained += int(lengths[is_trained_mode(chunk.modes)].sum())

    def named(self) -> dict[str, Any]:
        by_tag = dict(zip(TAG_NAMES, self.by_tag, strict=True))
        return {
            "documents": self.documents, "sequences": self.sequences, "tokens_by_tag": by_tag,
            "trained_tokens": self.trained, "longest": self.longest,
        }  # fmt: skip


def _check_ids(path: Path, num_documents: int, problems: _Problems) -> None:
    count = 0
    with open(path, "rb") as file:
        while lines := file.readlines(1 << 24):
            count += len(lines)
            try:
                b"".join(lines).decode()
            except UnicodeDecodeError as error:
                problems.add(f"{path}: not UTF-8 within lines {count - len(lines) + 1} to {count}: {error.reason}")
            if b"\n" in lines or not lines[-1].endswith(b"\n"):
                problems.add(f"{path}: an empty or unfinished line within lines {count - len(lines) + 1} to {count}")
    if count != num_documents:
        problems.add(f"{path}: {count} ids for {num_documents} documents")
    repeated, names = find_repeated([path])
    problems.add_many(repeated, (f"{path}: the id {name!r} stands there more than once" for name in names))


def _check_rejects(path: Path, info: DatasetInfo, problems: _Problems) -> None:
    counts: Counter[str] = Counter()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                counts[str(json.loads(line)["reason"])] += 1
            except (ValueError, KeyError, TypeError, RecursionError):
                problems.add(f"{path}, line {number}: no JSON object with a reason")
    if dict(counts) != info.rejects:
        problems.add(f"{path}: holds {dict(counts)}, but {INFO} says rejects = {info.rejects}")


def _check_core(documents: IndexedDocuments, problems: _Problems) -> None:
    """Stock Megatron-Core sees the same lengths, bounds and modes, and in a sample of documents the same ids."""
    try:
        from megatron.core.datasets.indexed_dataset import IndexedDataset
    except ImportError as error:
        raise UpstreamError(f"Megatron-Core cannot be imported ({error}); install it, or verify without it") from error
    prefix = documents.folder / Path(BIN).stem
    try:
        stock = IndexedDataset(str(prefix), multimodal=True)
        sequence = 0
        for chunk in documents.chunks():
            here = slice(sequence, sequence + len(chunk.lengths))
            for name, column in (("sequence_lengths", chunk.lengths), ("sequence_modes", chunk.modes)):
                if not np.array_equal(getattr(stock.index, name)[here], column):
                    problems.add(f"{prefix}: Megatron-Core reads other {name} near sequence {sequence}")
            sequence += len(chunk.lengths)
        bounds = stock.document_indices
        draw = np.random.default_rng(0).integers(0, len(documents), _CORE_DOCUMENTS)
        for number in sorted({0, len(documents) - 1, *draw.tolist()}):
            ours = documents.document(number)
            sequences, modes = stock[int(bounds[number]) : int(bounds[number + 1])]
            repeated = np.repeat(modes, [len(ids) for ids in sequences])
            theirs = (np.concatenate(sequences), tag_of_mode(repeated), is_trained_mode(repeated))
            if not all(map(np.array_equal, theirs, (ours.ids, ours.tags, ours.is_trained))):
                problems.add(f"{prefix}: document {number}: Megatron-Core reads other ids or modes")
    except (AssertionError, ValueError, TypeError, IndexError, OSError) as error:
        problems.add(f"{prefix}: Megatron-Core cannot read it: {type(error).__name__}: {error}")


def _tokens(done: float, total: float, seconds: float) -> str:
    return f"{done / 1e6:.0f}/{total / 1e6:.0f} M tokens, {done / 1e6 / max(seconds, 1e-9):.0f} M/s"
