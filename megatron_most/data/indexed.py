"""Core's multimodal IndexedDataset files: written from arrays, read by memory map, checked when opened.

A document is several sequences, each of one tag and all trained on or all not. The int8 mode of a sequence says both,
so tags and loss mask cost a byte a sequence, and stock Megatron-Core opens the files. `tokens.bin` holds the ids,
`tokens.idx` where sequences and documents begin. Core believes what an index says; here a pair of files that do not
fit each other is refused on opening. What a flipped byte can hide from these checks, `verify` finds by its hash.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from megatron_most.data.document import DocumentRuns
from megatron_most.errors import DataError
from megatron_most.runtime import sync_folder
from megatron_most.vocab import TAG_NAMES

if TYPE_CHECKING:
    from megatron_most.data.batch import Document

BIN, IDX, IDS = "tokens.bin", "tokens.idx", "ids.txt"
CODES: dict[np.dtype[Any], int] = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}  # as Core numbers them
_MAGIC, _VERSION = b"MMIDIDX\0\0", 1
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, type, sequences, documents + 1
_DOCUMENTS_AT_ONCE, _PIECE = 1 << 16, 1 << 20
_INT32 = np.dtype(np.int32)
_REMEDY = "copy the data set here again, or build it again"


def mode_of(tag: int, is_trained: bool) -> int:
    """What a sequence's int8 mode is: the tag, and the high bit where it is trained on."""
    return tag - 128 if is_trained else tag


def tag_of_mode(mode: Any) -> Any:
    """Of one mode, or of an array of them."""
    return mode & 0x7F


def is_trained_mode(mode: Any) -> Any:
    """Of one mode, or of an array of them."""
    return mode < 0


@dataclass(frozen=True)
class Encoded:
    """Documents as bytes, ready to be appended to five files."""

    tokens: bytes
    lengths: bytes
    """int32 tokens of each sequence."""
    modes: bytes
    """int8 of each sequence."""
    counts: bytes
    """int32 sequences of each document."""
    ids: bytes
    """One document id a line."""


def encode_documents(documents: Sequence[DocumentRuns], dtype: DTypeLike) -> Encoded:
    """Lay documents end to end, joining neighbouring runs of one tag and training. Order is kept.

    All work but one pass over the runs is numpy's: most documents are short, and Python's part is then the cost.
    """
    kind = np.dtype(dtype)
    runs = [run for document in documents for run in document.runs]
    arrays = [run.ids for run in runs]
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    tags = np.array([run.tag for run in runs], np.int64)
    modes = np.where(np.array([run.is_trained for run in runs], bool), tags - 128, tags).astype(np.int8)
    owner = np.arange(len(documents)).repeat(np.array([len(document.runs) for document in documents], np.int64))
    tokens = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
    assert tokens.ndim == 1 and tokens.dtype.kind in "iu", f"runs hold ids, not {tokens.ndim}-D {tokens.dtype}"
    _check_documents(documents, tokens, lengths, tags, owner, kind)
    kept = np.flatnonzero(lengths)
    lengths, modes, owner = lengths[kept], modes[kept], owner[kept]
    begins = np.ones(len(kept), bool)
    begins[1:] = (modes[1:] != modes[:-1]) | (owner[1:] != owner[:-1])
    first = np.flatnonzero(begins)
    lengths = np.add.reduceat(lengths, first) if len(first) else lengths
    return Encoded(
        tokens=tokens.astype(kind, copy=False).tobytes(),
        lengths=lengths.astype(np.int32).tobytes(),
        modes=modes[first].tobytes(),
        counts=np.bincount(owner[first], minlength=len(documents)).astype(np.int32).tobytes(),
        ids=_encode_ids(documents),
    )


def _check_documents(
    documents: Sequence[DocumentRuns], tokens: NDArray[Any], lengths: NDArray[np.int64], tags: NDArray[np.int64],
    owner: NDArray[np.int64], kind: np.dtype[Any],
) -> None:  # fmt: skip
    sizes = np.bincount(owner, weights=lengths, minlength=len(documents))  # exact up to 2^53
    if len(empty := np.flatnonzero(sizes == 0)):
        raise DataError(f"document {documents[empty[0]].id!r}: holds no tokens; leave it out")
    if len(long := np.flatnonzero(sizes > np.iinfo(np.int32).max)):
        raise DataError(f"document {documents[long[0]].id!r}: longer than the index can say; cut its recording")
    if len(odd := np.flatnonzero((tags < 0) | (tags >= len(TAG_NAMES)))):
        raise DataError(f"document {documents[owner[odd[0]]].id!r}: {tags[odd[0]]} is no tag; tags are 0..2")
    top = np.iinfo(kind).max
    if len(tokens) and (int(tokens.min()) < 0 or int(tokens.max()) > top):
        at = int(np.flatnonzero((tokens < 0) | (tokens > top))[0])
        bad = documents[owner[np.searchsorted(np.cumsum(lengths), at, "right")]]
        raise DataError(
            f"document {bad.id!r}: token id {tokens[at]} is not in 0..{top} ({kind}); "
            "use the tokenizer and units that the token map was made for"
        )


def _encode_ids(documents: Sequence[DocumentRuns]) -> bytes:
    names = [document.id for document in documents]
    text = "\n".join(names)
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        bad = text[: error.start].count("\n")
        raise DataError(f"document {names[bad]!r}: its id cannot be written as UTF-8; rename it") from error
    if names and (text.count("\n") != len(names) - 1 or "\r" in text or "" in names):
        bad = next(i for i, name in enumerate(names) if not name or "\n" in name or "\r" in name)
        raise DataError(f"document {names[bad]!r} (number {bad}): an id is one line, not empty; rename it")
    return data + b"\n" if names else b""


@dataclass(frozen=True)
class Sequences:
    """The index of some neighbouring documents."""

    counts: NDArray[np.integer[Any]]
    """Sequences of each document."""
    lengths: NDArray[np.int32]
    """Tokens of each sequence."""
    modes: NDArray[np.int8]


def write_index(path: Path, lengths_file: Path, modes_file: Path, counts_file: Path, dtype: DTypeLike) -> None:
    """Make the .idx from what `encode_documents` gave, gathered in files. Memory does not grow with them."""
    sizes = [file.stat().st_size for file in (lengths_file, modes_file, counts_file)]
    if sizes[0] != 4 * sizes[1]:
        raise DataError(f"{lengths_file}: {sizes[0] / 4:g} lengths, but {sizes[1]} modes beside it; {_REMEDY}")
    if sizes[2] % 4:
        raise DataError(f"{counts_file}: {sizes[2]} bytes are no int32 numbers; {_REMEDY}")
    with contextlib.ExitStack() as stack:
        lengths, modes, counts = (stack.enter_context(open(f, "rb")) for f in (lengths_file, modes_file, counts_file))

        def chunks() -> Iterator[Sequences]:
            while data := counts.read(4 * _DOCUMENTS_AT_ONCE):
                here = np.frombuffer(data, np.int32)
                if int(here.min()) < 1:
                    raise DataError(f"{counts_file}: a document of {here.min()} sequences; {_REMEDY}")
                num = int(here.sum(dtype=np.int64))
                found = Sequences(
                    here, np.frombuffer(lengths.read(4 * num), np.int32), np.frombuffer(modes.read(num), np.int8)
                )
                if len(found.lengths) != num:
                    raise DataError(f"{counts_file}: more sequences than {lengths_file.name} holds; {_REMEDY}")
                yield found

        _write(path, np.dtype(dtype), sizes[1], sizes[2] // 4, chunks())


def join_indexes(path: Path, parts: Sequence[IndexedDocuments]) -> None:
    """One .idx for .bin files laid end to end, as if their documents had been written at once."""
    num_sequences, num_documents = sum(part.num_sequences for part in parts), sum(len(part) for part in parts)
    chunks = (chunk for part in parts for chunk in part.chunks())
    _write(path, parts[0].dtype, num_sequences, num_documents, chunks)


_MODES = [mode_of(tag, is_trained) for is_trained in (False, True) for tag in range(len(TAG_NAMES))]


def _write(
    path: Path, kind: np.dtype[Any], num_sequences: int, num_documents: int, chunks: Iterable[Sequences]
) -> None:
    """One pass: the four columns grow side by side in one file, which gets its name once it is whole on the disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    tokens, sequences, documents = 0, 0, 0
    try:
        with contextlib.ExitStack() as stack:
            head = stack.enter_context(open(temporary, "xb"))
            head.write(_HEADER.pack(_MAGIC, _VERSION, CODES[kind], num_sequences, num_documents + 1))
            columns: list[BinaryIO] = []
            for offset in _offsets(num_sequences, num_documents + 1)[:-1]:
                columns.append(stack.enter_context(open(temporary, "r+b")))
                columns[-1].seek(offset)
            columns[2].write(bytes(8))
            for chunk in chunks:
                ends = tokens + np.cumsum(chunk.lengths, dtype=np.int64)
                last = sequences + np.cumsum(chunk.counts, dtype=np.int64)
                columns[0].write(chunk.lengths.tobytes())
                columns[1].write(((ends - chunk.lengths) * kind.itemsize).tobytes())
                columns[2].write(last.tobytes())
                columns[3].write(chunk.modes.tobytes())
                tokens, sequences, documents = int(ends[-1]), int(last[-1]), documents + len(last)
            if (sequences, documents) != (num_sequences, num_documents):
                raise DataError(f"{path}: lengths, modes and counts do not fit each other; {_REMEDY}")
            for file in (head, *columns):
                file.flush()
            os.fsync(head.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _offsets(num_sequences: int, num_bounds: int) -> tuple[int, ...]:
    """Where lengths, pointers, document bounds and modes begin, and where the file ends."""
    lengths = _HEADER.size
    pointers = lengths + 4 * num_sequences
    bounds = pointers + 8 * num_sequences
    modes = bounds + 8 * num_bounds
    return lengths, pointers, bounds, modes, modes + num_sequences


# The tags and the training of documents of one sequence, to be cut to length: views that cannot be written to.
_SAME = 1 << 16
_SAME_TAG = [np.broadcast_to(np.full(_SAME, tag, np.int8), _SAME) for tag in range(len(TAG_NAMES))]
_SAME_TRAINED = [np.broadcast_to(np.full(_SAME, value, bool), _SAME) for value in (False, True)]


class IndexedDocuments:
    """Documents of an indexed dataset by number, read through memory maps. It may be forked, and pickled: by name."""

    def __init__(self, folder: Path | str, fingerprint: str = "") -> None:
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        """Of the content, where the opener knows it (`open_dataset`)."""
        self._open()
        self._check()

    def _open(self) -> None:
        """Map the files; sizes and header must fit."""
        from megatron_most.data.batch import Document  # late: it brings torch

        self._document: Any = Document
        index, tokens = _map(self.folder / IDX), _map(self.folder / BIN)
        if len(index) < _HEADER.size:
            raise DataError(f"{self.folder / IDX}: cut short within its header ({len(index)} bytes); {_REMEDY}")
        magic, version, code, num_sequences, num_bounds = _HEADER.unpack(index[: _HEADER.size].tobytes())
        if (magic, version) != (_MAGIC, _VERSION):
            raise DataError(f"{self.folder / IDX}: not an index of version 1 ({magic!r}, {version}); {_REMEDY}")
        kinds = [kind for kind, number in CODES.items() if number == code]
        if not kinds:
            raise DataError(f"{self.folder / IDX}: tokens of type {code}; only int32 (4) and uint16 (8) are; {_REMEDY}")
        at = _offsets(num_sequences, num_bounds)
        if num_bounds < 1 or len(index) != at[4]:
            raise DataError(
                f"{self.folder / IDX}: {len(index)} bytes, but {num_sequences} sequences in {num_bounds - 1} "
                f"documents take {at[4]}; {_REMEDY}"
            )
        self.dtype, self._item_size = kinds[0], kinds[0].itemsize
        if len(tokens) % self.dtype.itemsize:
            raise DataError(f"{self.folder / BIN}: {len(tokens)} bytes are no {self.dtype} numbers; {_REMEDY}")
        self.num_sequences, self._num_documents = num_sequences, num_bounds - 1
        self.tokens: NDArray[Any] = tokens.view(self.dtype)
        self._lengths = index[at[0] : at[1]].view(np.int32)
        self._pointers = index[at[1] : at[2]].view(np.int64)
        self._bounds = index[at[2] : at[3]].view(np.int64)
        self._modes = index[at[3] :].view(np.int8)
        # One number from a memoryview takes a third of the time one from an array takes.
        self._pointer_at, self._bound_at = (index[at[i] : at[i + 1]].data.cast("q") for i in (1, 2))
        self._mode_at = index[at[3] :].data.cast("b")

    def _check(self) -> None:
        """Every number of the index against its neighbours, a piece at a time."""
        path, size = self.folder / IDX, self._item_size
        before = -1
        for bounds in _pieces(self._bounds):
            steps = np.diff(bounds, prepend=before)
            if before < 0 and bounds[0]:
                raise DataError(f"{path}: the first document begins at sequence {bounds[0]}, not at 0; {_REMEDY}")
            if (steps < 1).any():
                raise DataError(f"{path}: a document without sequences, near sequence {max(before, 0)}; {_REMEDY}")
            before = int(bounds[-1])
        if before != self.num_sequences:
            raise DataError(f"{path}: documents end at sequence {before} of {self.num_sequences}; {_REMEDY}")
        at, number = 0, 0
        columns = (_pieces(self._lengths), _pieces(self._pointers), _pieces(self._modes))
        for lengths, pointers, modes in zip(*columns, strict=True):
            ends = at + np.cumsum(lengths, dtype=np.int64) * size
            for wrong, what in (
                (lengths < 1, "has no tokens"),
                (pointers != ends - lengths.astype(np.int64) * size, "does not begin where the one before it ends"),
                (~np.isin(modes, _MODES), "has a mode that is no tag"),
            ):
                if wrong.any():
                    raise DataError(f"{path}: sequence {number + int(wrong.argmax())} {what}; {_REMEDY}")
            at, number = int(ends[-1]), number + len(lengths)
        if at != self.tokens.nbytes:
            raise DataError(
                f"{self.folder / BIN}: {self.tokens.nbytes} bytes, but {IDX} describes {at}: cut short, grown, or of "
                f"another data set; {_REMEDY}"
            )

    def __len__(self) -> int:
        return self._num_documents

    def document(self, index: int) -> Document:
        """Ids (int32), tags (int8) and what is trained on (bool), as arrays to read from, not to write into."""
        if not 0 <= index < self._num_documents:
            raise IndexError(f"document {index} of {self._num_documents}")
        first, last = self._bound_at[index], self._bound_at[index + 1]
        begin = self._pointer_at[first]
        end = self._pointer_at[last] if last < self.num_sequences else self.tokens.nbytes
        size = self._item_size
        ids = self.tokens[begin // size : end // size]
        if self.dtype is not _INT32:
            ids = ids.astype(_INT32)
        if last - first == 1 and len(ids) <= _SAME:  # most texts
            mode = self._mode_at[first]
            tags, is_trained = _SAME_TAG[mode & 0x7F][: len(ids)], _SAME_TRAINED[mode < 0][: len(ids)]
        else:
            modes = self._modes[first:last].repeat(self._lengths[first:last])
            tags, is_trained = tag_of_mode(modes), is_trained_mode(modes)
        # The __init__ of a frozen dataclass takes as long as all of the above.
        document = object.__new__(self._document)
        values = document.__dict__
        values["ids"], values["tags"], values["is_trained"] = ids, tags, is_trained
        return document

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        begins = [np.zeros(0, np.int64)]
        begins += [self._pointers[bounds] for bounds in _pieces(self._bounds[:-1])]
        lengths = np.diff(np.concatenate(begins), append=self.tokens.nbytes) // self._item_size
        return lengths.astype(np.int64, copy=False)

    def chunks(self) -> Iterator[Sequences]:
        """The index from the first document to the last, in copies of bounded size."""
        for start in range(0, len(self), _DOCUMENTS_AT_ONCE):
            bounds = self._bounds[start : start + _DOCUMENTS_AT_ONCE + 1]
            here = slice(int(bounds[0]), int(bounds[-1]))
            yield Sequences(np.diff(bounds), self._lengths[here].copy(), self._modes[here].copy())

    def document_id(self, index: int) -> str:
        """The id of a document; the first call looks for the ends of all lines of ids.txt."""
        if not 0 <= index < self._num_documents:
            raise IndexError(f"document {index} of {self._num_documents}")
        data, ends = self._ids
        return bytes(data[ends[index] : ends[index + 1] - 1]).decode(errors="backslashreplace")

    @cached_property
    def _ids(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        path = self.folder / IDS
        data = _map(path)
        ends = [np.zeros(1, np.int64)]
        ends += [np.flatnonzero(piece == 10) + (1 + i * _PIECE) for i, piece in enumerate(_pieces(data))]
        found = np.concatenate(ends)
        if len(found) - 1 != len(self) or found[-1] != len(data):
            raise DataError(f"{path}: {len(found) - 1} whole lines for {len(self)} documents; {_REMEDY}")
        return data, found

    def close(self) -> None:
        """Let go of the files. Documents that were read remain."""
        self.__dict__ = {"folder": self.folder, "_num_documents": 0}

    def __enter__(self) -> IndexedDocuments:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "fingerprint": self.fingerprint,
            "sizes": (self.num_sequences, len(self), self.tokens.nbytes),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.fingerprint = state["folder"], state["fingerprint"]
        self._open()  # the numbers were checked where it was opened first
        if (self.num_sequences, len(self), self.tokens.nbytes) != state["sizes"]:
            raise DataError(f"{self.folder}: changed while it was open; start again")


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        if not path.stat().st_size:  # an empty file cannot be mapped
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, "r").view(np.ndarray)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; {_REMEDY}") from error


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (array[start : start + _PIECE] for start in range(0, len(array), _PIECE))
