"""Reading a checkpoint into any layout: each rank takes the boxes it needs, whoever wrote them.

Nothing is unpickled: JSON and safetensors only, and every file is proven by its hash before a number of it is used.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch

from megatron_most.checkpoint.pieces import Box, Piece, boxed
from megatron_most.checkpoint.record import Record
from megatron_most.errors import CheckpointError, DataError
from megatron_most.runtime import confine, sha256_file


def verify_files(folder: Path, record: Record, rank: int = 0, ranks: int = 1) -> None:
    """Prove this rank's share of the files: every ranks-th of them."""
    for name in sorted(record.files)[rank::ranks]:
        size, digest = record.files[name]
        path = _inside(folder, name)
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; the checkpoint is not whole")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes where {size} were written")

        if sha256_file(path) != digest:
            raise CheckpointError(f"{path}: damaged (its sha256 is not that of the manifest)")


class TensorReader:
    """Boxes of the stored tensors, on the host."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder, self.record = folder, record
        self._files: dict[str, Any] = {}

    def has(self, kind: str, name: str) -> bool:
        return name in self.record.tensors.get(kind, {})

    def read(self, kind: str, piece: Piece) -> torch.Tensor:
        """The box of a whole tensor. CheckpointError where it is not there, of another shape, or not covered."""
        stored = self.record.tensors.get(kind, {}).get(piece.name)
        if stored is None:
            raise CheckpointError(f"{self.folder}: no {kind} of {piece.name}; it is the checkpoint of another model")
        if stored.shape != piece.whole:
            raise CheckpointError(
                f"{self.folder}: {piece.name} has shape {list(stored.shape)}, the model wants {list(piece.whole)}"
            )
        out, filled = None, 0
        for part in stored.pieces:
            start = tuple(map(max, part.start, piece.start))
            stop = tuple(
                min(a + n, b + m) for a, n, b, m in zip(part.start, part.shape, piece.start, piece.shape, strict=True)
            )
            shape = tuple(b - a for a, b in zip(start, stop, strict=True))
            if any(n <= 0 for n in shape):
                continue
            data = self._slice(part.file, part.key, _minus(start, part.start), shape)
            if tuple(data.shape) != shape:
                raise CheckpointError(f"{self.folder / part.file}: {part.key} has not the shape its manifest says")
            if out is None:
                out = torch.empty(piece.shape, dtype=data.dtype)
            out[boxed(_minus(start, piece.start), shape)] = data
            filled += prod(shape)
        if out is None or filled != prod(piece.shape):
            raise CheckpointError(f"{self.folder}: {filled} of {prod(piece.shape)} numbers of {piece.name} are there")
        return out

    def _slice(self, file: str, key: str, start: Box, shape: Box) -> torch.Tensor:
        from safetensors import SafetensorError, safe_open

        try:
            if file not in self._files:
                self._files[file] = safe_open(_inside(self.folder, file), framework="pt")
            if not shape:
                return self._files[file].get_tensor(key)
            return self._files[file].get_slice(key)[boxed(start, shape)]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder / file}: {key} cannot be read: {error}") from error


def _minus(a: Box, b: Box) -> Box:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _inside(folder: Path, name: str) -> Path:
    try:
        return confine(folder, name)
    except DataError as error:
        raise CheckpointError(f"{folder}: the manifest names a file outside of it: {error}") from error
