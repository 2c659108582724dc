"""Checkpoints that any layout can read: whole tensors in pieces, hashed, written beside training, added by one rename.

pieces.py says who holds what; save.py writes, shelf.py keeps, record.py describes, load.py proves and reads.
"""

from megatron_most.checkpoint.load import TensorReader, verify_files
from megatron_most.checkpoint.pieces import Piece, find_pieces
from megatron_most.checkpoint.record import KINDS, Record, read_record
from megatron_most.checkpoint.restore import LocalTensors
from megatron_most.checkpoint.save import Saver, Snapshot
from megatron_most.checkpoint.shelf import Shelf

__all__ = [
    "KINDS", "LocalTensors", "Piece", "Record", "Saver", "Shelf", "Snapshot", "TensorReader", "find_pieces",
    "read_record", "verify_files",
]  # fmt: skip
