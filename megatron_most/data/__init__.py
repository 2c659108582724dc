"""From corpora to PackedBatch. No process groups here: rank and size come in as numbers."""

from megatron_most.data.batch import Document, PackedBatch, pack_rows
from megatron_most.data.check import check_batch
from megatron_most.data.synthetic import Kind, synthetic_batch, synthetic_document

__all__ = ["Document", "Kind", "PackedBatch", "check_batch", "pack_rows", "synthetic_batch", "synthetic_document"]
