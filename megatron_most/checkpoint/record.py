"""What a checkpoint says of itself: `manifest.json`, whose own hash stands beside it.

Tensors are named whole; each is made of pieces, boxes that some rank wrote into some file. Kinds are "weight" (float32
masters and buffers) and the optimizer's moments. Everything needed to go on is here or in the files listed here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_most.checkpoint.pieces import Box, require_cover
from megatron_most.checkpoint.tensor_file import DTYPES
from megatron_most.errors import CheckpointError, DataError
from megatron_most.runtime import read_file, write_atomically

FORMAT = "most-checkpoint-1"
MANIFEST, SUM = "manifest.json", "manifest.sha256"
KINDS = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class StoredPiece:
    """A box of a whole tensor in a file."""

    file: str
    key: str
    start: Box
    shape: Box


@dataclass(frozen=True)
class StoredTensor:
    """A whole tensor and the pieces it is made of."""

    shape: Box
    dtype: str
    pieces: tuple[StoredPiece, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One checkpoint."""

    step: int
    attempt: int
    """The claim under which it was written; a later attempt of the job has a higher number."""
    tensors: dict[str, dict[str, StoredTensor]]
    """kind -> name -> tensor."""
    files: dict[str, tuple[int, str]]
    """name -> (bytes, sha256)."""
    training: dict[str, Any] = field(default_factory=dict)
    """Plain values of the loop: position in the data, counters, optimizer steps."""
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> str:
        """Write manifest and sum; returns the sum."""
        tensors = {
            kind: {
                name: [list(t.shape), t.dtype, [[p.file, p.key, list(p.start), list(p.shape)] for p in t.pieces]]
                for name, t in named.items()
            }
            for kind, named in self.tensors.items()
        }
        body = {**vars(self), "tensors": tensors, "format": FORMAT}
        text = to_json(body)
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_atomically(folder / MANIFEST, text)
        write_atomically(folder / SUM, digest + "\n")
        return digest


def to_json(body: dict[str, Any]) -> str:
    """Word by word: in one call a large body would hold the interpreter, and the training step beside it, for long."""
    return "".join(json.JSONEncoder(separators=(",", ":"), sort_keys=True, allow_nan=False).iterencode(body))


def read_record(folder: Path) -> Record:
    """The record, proven by its sum and complete in itself; files are not looked at."""
    return parse_record(folder, read_manifest(folder))


def read_manifest(folder: Path) -> bytes:
    """As it stands there, proven by its sum."""
    try:
        data = read_file(folder / MANIFEST)
        wanted = read_file(folder / SUM)
    except DataError as error:
        raise CheckpointError(f"{folder}: no whole checkpoint: {error}") from error
    if sum_of(data) != wanted:
        raise CheckpointError(f"{folder / MANIFEST}: damaged (its sha256 is not that of {SUM})")
    return data


def sum_of(manifest: bytes) -> bytes:
    """What SUM holds beside it."""
    return f"{hashlib.sha256(manifest).hexdigest()}\n".encode()


def parse_record(folder: Path, data: bytes) -> Record:
    """Of a manifest's bytes, wherever they were read; `folder` is for what is said of them."""
    try:
        body = json.loads(data)
        if body.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        body["files"] = {name: (int(size), str(digest)) for name, (size, digest) in body["files"].items()}
        body["tensors"] = {
            kind: {name: _stored(name, entry, body["files"]) for name, entry in named.items()}
            for kind, named in body["tensors"].items()
        }
        record = Record(**body)
        if type(record.step) is not int or type(record.attempt) is not int:
            raise ValueError(f"step is {record.step!r}, attempt is {record.attempt!r}")
        return record
    except (CheckpointError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: not readable as a checkpoint ({error})") from error


def _stored(name: str, entry: Any, files: Container[str]) -> StoredTensor:
    shape, dtype, pieces = entry
    if dtype not in DTYPES:
        raise ValueError(f"{name} is of {dtype}, which is unknown")
    made = tuple(StoredPiece(file, str(key), tuple(start), tuple(box)) for file, key, start, box in pieces)
    require_cover(name, tuple(shape), [(piece.start, piece.shape) for piece in made])
    unproven = [piece.file for piece in made if piece.file not in files]
    if unproven:
        raise ValueError(f"{name} is in {unproven[0]}, which is not among the files")
    return StoredTensor(tuple(shape), dtype, made)
