"""Tensor files in the safetensors format, written as a stream that is hashed on its way to the disk.

After the library's own writer, the hash would cost a second reading. Here a block at a time goes to the file and into
the hash, and both let the training step run beside them. Reading is the library's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from megatron_most.errors import CheckpointError

_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _NAMES}
"""What can be stored, by the name that manifests give it."""
_BLOCK = 1 << 24


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[int, str]:
    """Write host tensors to a new file, down to the disk; (bytes, sha256)."""
    head: dict[str, object] = {}
    at = 0
    for key, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"{path}: {key} is of {tensor.dtype}, which has no place in a checkpoint")
        size = tensor.numel() * tensor.element_size()
        head[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, written = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for data in (len(text).to_bytes(8, "little"), text):
            file.write(data)
            digest.update(data)
            written += len(data)
        for tensor in tensors.values():
            flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else None
            for start in range(0, 0 if flat is None else flat.nbytes, _BLOCK):
                assert flat is not None, "it has bytes"
                block = flat.data[start : start + _BLOCK]
                file.write(block)  # a file and a hash let other threads run while they take a block
                digest.update(block)
                written += len(block)
        file.flush()
        os.fsync(file.fileno())
    return written, digest.hexdigest()
