"""A checkpoint's numbers as this rank's local tensors, whatever layout they were written under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch

from megatron_most.checkpoint.load import TensorReader
from megatron_most.checkpoint.pieces import Piece, require_cover
from megatron_most.errors import CheckpointError


class LocalTensors:
    """Local tensors of any kind by their local names; what has no pieces is not stored."""

    def __init__(self, reader: TensorReader, pieces: Mapping[str, Sequence[Piece]]) -> None:
        self._reader, self._pieces = reader, pieces

    def read(self, kind: str, local: str, shape: Sequence[int]) -> torch.Tensor | None:
        """On the host, in the stored type; None where there is no such kind of it (moments of a frozen weight)."""
        boxes = self._pieces[local]
        stored = [self._reader.has(kind, piece.name) for piece in boxes]
        if kind != "weight" and not any(stored):
            return None
        require_cover(local, tuple(shape), [(piece.local_start, piece.shape) for piece in boxes])
        parts = [(piece, self._reader.read(kind, piece)) for piece in boxes]
        out = torch.empty(tuple(shape), dtype=parts[0][1].dtype)
        for piece, part in parts:
            piece.of(out).copy_(part)
        return out

    @torch.no_grad()
    def fill(self, model: torch.nn.Module, new: Sequence[str] = ()) -> None:
        """Every weight and buffer of the model, rounded to its precision. Do it before an engine is built. `new`:
        patterns of names of which a checkpoint without any is no damage; they stay as the model has them.
        """
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        unknown = sorted(set(self._pieces) - set(tensors))
        if unknown:
            raise CheckpointError(f"{unknown[0]}: not in the model")
        stored = self._reader.names("weight")
        absent = [pattern for pattern in new if not any(fnmatchcase(name, pattern) for name in stored)]
        for local in self._pieces:
            if any(fnmatchcase(local, pattern) for pattern in absent):
                continue
            value = self.read("weight", local, tensors[local].shape)
            assert value is not None, "a weight is there or an error"
            tensors[local].copy_(value)
