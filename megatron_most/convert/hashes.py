"""The hash of a tensor as one whole, however its files are cut: dtype, shape, then its bytes row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod

import torch

from megatron_most.checkpoint import DTYPES, Piece, TensorReader

_BYTES_AT_ONCE = 1 << 26


def hash_tensor(reader: TensorReader, kind: str, name: str) -> str:
    """SHA-256, in hexadecimal; few rows at a time are in memory."""
    stored = reader.record.tensors[kind][name]
    digest = hashlib.sha256(f"{stored.dtype} {list(stored.shape)}".encode())
    row = prod(stored.shape[1:]) * DTYPES[stored.dtype].itemsize
    rows, at_once = (stored.shape[0] if stored.shape else 1), max(1, _BYTES_AT_ONCE // max(row, 1))
    nothing = (0,) * len(stored.shape)
    for first in range(0, rows, at_once):
        start = (first, *nothing[1:]) if stored.shape else ()
        shape = (min(at_once, rows - first), *stored.shape[1:]) if stored.shape else ()
        data = reader.read(kind, Piece(name, stored.shape, start, shape, "", nothing))
        if data.numel():
            digest.update(data.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_together(hashes: Mapping[str, str]) -> str:
    """One for many tensors, whatever their order."""
    return hashlib.sha256("\n".join(f"{name} {hashes[name]}" for name in sorted(hashes)).encode()).hexdigest()
