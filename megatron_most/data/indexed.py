"""Core's multimodal IndexedDataset files, read by memory map and checked when opened.

In: a folder with the files that index_writer.py wrote (index_format.py says how they are laid out). Out: documents by
number. Core believes what an index says; here a pair of files that do not fit each other is refused on opening. What a
flipped byte can hide from these checks, `verify` finds by its hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_most.data.index_format import (
    BIN,
    CODES,
    HEADER,
    IDS,
    IDX,
    MAGIC,
    REMEDY,
    VERSION,
    Sequences,
    is_trained_mode,
    mode_of,
    offsets,
    tag_of_mode,
)
from megatron_most.errors import DataError
from megatron_most.vocab import TAG_NAMES

if TYPE_CHECKING:
    from megatron_most.data.batch import Document

__all__ = ["BIN", "CODES", "IDS", "IDX", "IndexedDocuments", "Sequences", "is_trained_mode", "mode_of", "tag_of_mode"]

_DOCUMENTS_AT_ONCE, _PIECE = 1 << 16, 1 << 20
_MODES = [mode_of(tag, is_trained) for is_trained in (False, True) for tag in range(len(TAG_NAMES))]

_SAME, _KEPT = 1 << 16, 4096


class _Same(dict[int, tuple[NDArray[np.int8], NDArray[np.bool_]]]):
    """length -> tags and training of a document of one sequence: views that cannot be written to. Those of short
    documents are kept, since to cut one takes as long as to read the ids of a text.
    """

    def __init__(self, mode: int) -> None:
        super().__init__()
        self._tags = np.broadcast_to(np.full(_SAME, tag_of_mode(mode), np.int8), _SAME)
        self._is_trained = np.broadcast_to(np.full(_SAME, is_trained_mode(mode), bool), _SAME)

    def __missing__(self, length: int) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        cut = self._tags[:length], self._is_trained[:length]
        if length <= _KEPT:
            self[length] = cut
        return cut


_SAME_OF = {mode: _Same(mode) for mode in _MODES}


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
        if len(index) < HEADER.size:
            raise DataError(f"{self.folder / IDX}: cut short within its header ({len(index)} bytes); {REMEDY}")
        magic, version, code, num_sequences, num_bounds = HEADER.unpack(index[: HEADER.size].tobytes())
        if (magic, version) != (MAGIC, VERSION):
            raise DataError(f"{self.folder / IDX}: not an index of version 1 ({magic!r}, {version}); {REMEDY}")
        kinds = [kind for kind, number in CODES.items() if number == code]
        if not kinds:
            raise DataError(f"{self.folder / IDX}: tokens of type {code}; only int32 (4) and uint16 (8) are; {REMEDY}")
        at = offsets(num_sequences, num_bounds)
        if num_bounds < 1 or len(index) != at[4]:
            raise DataError(
                f"{self.folder / IDX}: {len(index)} bytes, but {num_sequences} sequences in {num_bounds - 1} "
                f"documents take {at[4]}; {REMEDY}"
            )
        self.dtype, self._item_size = kinds[0], kinds[0].itemsize
        self._is_flat = num_sequences == num_bounds - 1  # each document is one sequence, as texts are
        self._shift = self._item_size.bit_length() - 1  # from bytes to tokens
        if len(tokens) % self.dtype.itemsize:
            raise DataError(f"{self.folder / BIN}: {len(tokens)} bytes are no {self.dtype} numbers; {REMEDY}")
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
                raise DataError(f"{path}: the first document begins at sequence {bounds[0]}, not at 0; {REMEDY}")
            if (steps < 1).any():
                raise DataError(f"{path}: a document without sequences, near sequence {max(before, 0)}; {REMEDY}")
            before = int(bounds[-1])
        if before != self.num_sequences:
            raise DataError(f"{path}: documents end at sequence {before} of {self.num_sequences}; {REMEDY}")
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
                    raise DataError(f"{path}: sequence {number + int(wrong.argmax())} {what}; {REMEDY}")
            at, number = int(ends[-1]), number + len(lengths)
        if at != self.tokens.nbytes:
            raise DataError(
                f"{self.folder / BIN}: {self.tokens.nbytes} bytes, but {IDX} describes {at}: cut short, grown, or of "
                f"another data set; {REMEDY}"
            )

    def __len__(self) -> int:
        return self._num_documents

    def document(self, index: int) -> Document:
        """Ids, tags (int8) and what is trained on (bool), as arrays to read from, not to write into.

        Ids have the type they are stored in, int32 or uint16: whoever packs them makes a copy of his own type anyway.
        """
        if not 0 <= index < self._num_documents:
            raise IndexError(f"document {index} of {self._num_documents}")
        pointer_at, shift = self._pointer_at, self._shift
        if self._is_flat:
            first, last = index, index + 1
        else:
            bound_at = self._bound_at
            first, last = bound_at[index], bound_at[index + 1]
        begin = pointer_at[first] >> shift
        end = pointer_at[last] >> shift if last < self.num_sequences else len(self.tokens)
        if last - first == 1 and end - begin <= _SAME:  # most texts
            tags, is_trained = _SAME_OF[self._mode_at[first]][end - begin]
        else:
            modes = self._modes[first:last].repeat(self._lengths[first:last])
            tags, is_trained = tag_of_mode(modes), is_trained_mode(modes)
        # The __init__ of a frozen dataclass takes as long as all of the above.
        document = object.__new__(self._document)
        values = document.__dict__
        values["ids"], values["tags"], values["is_trained"] = self.tokens[begin:end], tags, is_trained
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
            raise DataError(f"{path}: {len(found) - 1} whole lines for {len(self)} documents; {REMEDY}")
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
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; {REMEDY}") from error


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (array[start : start + _PIECE] for start in range(0, len(array), _PIECE))
