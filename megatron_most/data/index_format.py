"""How Core's multimodal IndexedDataset files are laid out: names, numbers and places, for their writer and reader.

A document is several sequences, each of one tag and all trained on or all not. The int8 mode of a sequence says both,
so tags and loss mask cost a byte a sequence, and stock Megatron-Core opens the files. `tokens.bin` holds the ids,
`tokens.idx` a header and four columns: lengths and places of sequences, bounds of documents, modes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BIN, IDX, IDS = "tokens.bin", "tokens.idx", "ids.txt"
CODES: dict[np.dtype[Any], int] = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}  # as Core numbers them
MAGIC, VERSION = b"MMIDIDX\0\0", 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, type, sequences, documents + 1
REMEDY = "copy the data set here again, or build it again"


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
class Sequences:
    """The index of some neighbouring documents."""

    counts: NDArray[np.integer[Any]]
    """Sequences of each document."""
    lengths: NDArray[np.int32]
    """Tokens of each sequence."""
    modes: NDArray[np.int8]


def offsets(num_sequences: int, num_bounds: int) -> tuple[int, ...]:
    """Where lengths, pointers, document bounds and modes begin, and where the file ends."""
    lengths = HEADER.size
    pointers = lengths + 4 * num_sequences
    bounds = pointers + 8 * num_sequences
    modes = bounds + 8 * num_bounds
    return lengths, pointers, bounds, modes, modes + num_sequences
