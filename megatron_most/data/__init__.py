"""From corpora to PackedBatch. No process groups here: rank and size come in as numbers.

Offline, files in and files out: corpora/ and manifest.py (checked rows), extract.py and unit_set.py (speech to units),
tasks.py and build.py (documents, indexed), verify.py, stats.py; commands.py puts them on a command line. For training:
blend.py and packing.py decide what comes when, reader.py reads it, batch.py is what the model takes.
Names are loaded when they are first asked for: the offline half needs no torch, whose import takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_most.runtime import lazy_names

if TYPE_CHECKING:
    from megatron_most.data.batch import MAX_TASKS, Document, PackedBatch, Wave, pack_rows
    from megatron_most.data.blend import Blend, DocumentSource, TaskSpec, open_task
    from megatron_most.data.check import check_batch
    from megatron_most.data.commands import read_prepare_data, run_prepare_data
    from megatron_most.data.dataset import load_info
    from megatron_most.data.frame_augment import FrameAugment
    from megatron_most.data.frame_opening import FrameOpener
    from megatron_most.data.made_with import MadeWith, makers_of
    from megatron_most.data.packing import PackedRow, deal_rows
    from megatron_most.data.place import Position, ReaderState
    from megatron_most.data.reader import Reader, Step, Steps
    from megatron_most.data.synthetic import Kind, synthetic_batch, synthetic_document
    from megatron_most.data.tokenizer import TextTokenizer, check_text_ids, load_tokenizer

_HOMES = {
    "batch": ("MAX_TASKS", "Document", "PackedBatch", "Wave", "pack_rows"),
    "blend": ("Blend", "DocumentSource", "TaskSpec", "open_task"),
    "check": ("check_batch",),
    "commands": ("read_prepare_data", "run_prepare_data"),
    "dataset": ("load_info",),
    "frame_augment": ("FrameAugment",),
    "frame_opening": ("FrameOpener",),
    "made_with": ("MadeWith", "makers_of"),
    "packing": ("PackedRow", "deal_rows"),
    "place": ("Position", "ReaderState"),
    "reader": ("Reader", "Step", "Steps"),
    "synthetic": ("Kind", "synthetic_batch", "synthetic_document"),
    "tokenizer": ("TextTokenizer", "check_text_ids", "load_tokenizer"),
}

__all__ = [
    "MAX_TASKS", "Blend", "Document", "DocumentSource", "FrameAugment", "FrameOpener", "Kind", "MadeWith",
    "PackedBatch", "PackedRow", "Position", "Reader", "ReaderState", "Step", "Steps", "TaskSpec", "TextTokenizer",
    "Wave", "check_batch", "check_text_ids", "deal_rows", "load_info", "load_tokenizer", "makers_of", "open_task",
    "pack_rows", "read_prepare_data", "run_prepare_data", "synthetic_batch", "synthetic_document",
]  # fmt: skip

__getattr__ = lazy_names(__name__, _HOMES)
