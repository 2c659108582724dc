"""From corpora to PackedBatch. No process groups here: rank and size come in as numbers."""

from megatron_most.data.batch import Document, PackedBatch, pack_rows
from megatron_most.data.check import check_batch
from megatron_most.data.synthetic import synthetic_batch, synthetic_document

__all__ = ["Document", "PackedBatch", "check_batch", "pack_rows", "synthetic_batch", "synthetic_document"]
