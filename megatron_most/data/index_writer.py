"""Documents to Core's multimodal IndexedDataset files: encoded as bytes to append, and the index that finds them.

In: DocumentRuns, a few at a time. Out: `Encoded` bytes for five files, and at the end one .idx made from three of them;
or one .idx for the datasets that are laid end to end. Memory does not grow with the number of documents.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from megatron_most.data.document import DocumentRuns
from megatron_most.data.index_format import CODES, HEADER, MAGIC, REMEDY, VERSION, Sequences, offsets
from megatron_most.data.indexed import IndexedDocuments
from megatron_most.errors import DataError
from megatron_most.runtime import sync_folder
from megatron_most.vocab import TAG_NAMES

_DOCUMENTS_AT_ONCE = 1 << 16


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


def write_index(path: Path, lengths_file: Path, modes_file: Path, counts_file: Path, dtype: DTypeLike) -> None:
    """Make the .idx from what `encode_documents` gave, gathered in files. Memory does not grow with them."""
    sizes = [file.stat().st_size for file in (lengths_file, modes_file, counts_file)]
    if sizes[0] != 4 * sizes[1]:
        raise DataError(f"{lengths_file}: {sizes[0] / 4:g} lengths, but {sizes[1]} modes beside it; {REMEDY}")
    if sizes[2] % 4:
        raise DataError(f"{counts_file}: {sizes[2]} bytes are no int32 numbers; {REMEDY}")
    with contextlib.ExitStack() as stack:
        lengths, modes, counts = (stack.enter_context(open(f, "rb")) for f in (lengths_file, modes_file, counts_file))

        def chunks() -> Iterator[Sequences]:
            while data := counts.read(4 * _DOCUMENTS_AT_ONCE):
                here = np.frombuffer(data, np.int32)
                if int(here.min()) < 1:
                    raise DataError(f"{counts_file}: a document of {here.min()} sequences; {REMEDY}")
                num = int(here.sum(dtype=np.int64))
                found = Sequences(
                    here, np.frombuffer(lengths.read(4 * num), np.int32), np.frombuffer(modes.read(num), np.int8)
                )
                if len(found.lengths) != num:
                    raise DataError(f"{counts_file}: more sequences than {lengths_file.name} holds; {REMEDY}")
                yield found

        _write(path, np.dtype(dtype), sizes[1], sizes[2] // 4, chunks())


def join_indexes(path: Path, parts: Sequence[IndexedDocuments]) -> None:
    """One .idx for .bin files laid end to end, as if their documents had been written at once."""
    num_sequences, num_documents = sum(part.num_sequences for part in parts), sum(len(part) for part in parts)
    chunks = (chunk for part in parts for chunk in part.chunks())
    _write(path, parts[0].dtype, num_sequences, num_documents, chunks)


def _write(
    path: Path, kind: np.dtype[Any], num_sequences: int, num_documents: int, chunks: Iterable[Sequences]
) -> None:
    """One pass: the four columns grow side by side in one file, which gets its name once it is whole on the disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    tokens, sequences, documents = 0, 0, 0
    try:
        with contextlib.ExitStack() as stack:
            head = stack.enter_context(open(temporary, "xb"))
            head.write(HEADER.pack(MAGIC, VERSION, CODES[kind], num_sequences, num_documents + 1))
            columns: list[BinaryIO] = []
            for offset in offsets(num_sequences, num_documents + 1)[:-1]:
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
                raise DataError(f"{path}: lengths, modes and counts do not fit each other; {REMEDY}")
            for file in (head, *columns):
                file.flush()
            os.fsync(head.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
