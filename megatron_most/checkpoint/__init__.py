"""Checkpoints that any layout can read: whole tensors in pieces, hashed, written beside training, added by one rename.

pieces.py says who holds what; save.py and draft.py write, record.py describes, shelf.py keeps; load.py proves and
reads, restore.py fills a model, find.py goes by a path.
"""

from megatron_most.checkpoint.draft import Snapshot
from megatron_most.checkpoint.find import EXPERT_LOAD, MADE_WITH, RECIPE, TOKEN_MAP, find_checkpoint, verify_together
from megatron_most.checkpoint.load import TensorReader, verify_files
from megatron_most.checkpoint.pieces import Piece, divide_work, find_pieces
from megatron_most.checkpoint.record import KINDS, Record, StoredPiece, StoredTensor, read_record
from megatron_most.checkpoint.restore import LocalTensors
from megatron_most.checkpoint.save import Saver
from megatron_most.checkpoint.shelf import Shelf, TakenOver, read_together
from megatron_most.checkpoint.tensor_file import DTYPES, TensorFile, TensorWriter

__all__ = [
    "DTYPES", "EXPERT_LOAD", "KINDS", "MADE_WITH", "RECIPE", "TOKEN_MAP", "LocalTensors", "Piece", "Record", "Saver",
    "Shelf", "Snapshot", "StoredPiece", "StoredTensor", "TakenOver", "TensorFile", "TensorReader", "TensorWriter",
    "divide_work", "find_checkpoint", "find_pieces", "read_record", "read_together", "verify_files", "verify_together",
]  # fmt: skip
