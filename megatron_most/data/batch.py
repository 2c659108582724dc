"""PackedBatch: documents laid end to end in rows of equal length, with their bounds; what the model trains on.

A row may hold several documents; no token attends to another document's. Labels never cross a bound: the last token
of a document has no label. Tags of inputs choose experts, tags of labels name the loss a token counts in. Row ends
are pads.
"""

# B rows (batch), S sequence, F width of continuous features

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from megatron_most.errors import DataError
from megatron_most.vocab import TEXT, TokenMap


@dataclass(frozen=True)
class Document:
    """Token ids, their tags and whether each is trained on; of one length."""

    ids: Sequence[int]
    tags: Sequence[int]
    is_trained: Sequence[bool]


@dataclass(frozen=True)
class PackedBatch:
    """Whole sequences, on the host or a device; every rank of a tensor/context/pipeline group holds the same ones."""

    tokens_BS: torch.Tensor
    tags_BS: torch.Tensor
    labels_BS: torch.Tensor
    label_tags_BS: torch.Tensor
    loss_weights_BS: torch.Tensor
    """0 where nothing is learnt: pads, prompts, document ends, filler rows."""
    documents_BS: torch.Tensor
    """Which document of its row a token belongs to; pads form one of their own."""
    is_pad_BS: torch.Tensor
    token_map: TokenMap
    """The vocabulary the ids are of; the model's must be the same."""
    is_packed: bool
    """Some row holds more than one document, so attention needs their bounds."""
    wave_BSF: torch.Tensor | None = None
    """Continuous features that stand in place of embeddings where is_wave_BS."""
    is_wave_BS: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> PackedBatch:
        """A copy on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in tensors.items() if torch.is_tensor(value)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})

    @property
    def num_rows(self) -> int:
        return self.tokens_BS.size(0)


def pack_rows(rows: Sequence[Sequence[Document]], length: int, token_map: TokenMap) -> PackedBatch:
    """Lay each row's documents end to end and pad to `length`. A document of n ids takes n-1 places (input -> next
    id).
    """
    shape = (len(rows), length)
    tokens, labels = (torch.full(shape, token_map.pad_id) for _ in range(2))
    tags, label_tags = torch.full(shape, TEXT), torch.full(shape, TEXT)
    weights, is_pad = torch.zeros(shape), torch.ones(shape, dtype=torch.bool)
    documents = torch.full(shape, -1)
    for r, row in enumerate(rows):
        at = 0
        for d, document in enumerate(row):
            size = len(document.ids) - 1
            if not len(document.ids) == len(document.tags) == len(document.is_trained):
                raise DataError(f"row {r}, document {d}: ids, tags and is_trained differ in length")
            if size < 1:
                raise DataError(f"row {r}, document {d}: a document needs at least 2 tokens, this has {size + 1}")
            if at + size > length:
                raise DataError(
                    f"row {r}, document {d}: {at + size} tokens do not fit a row of {length}; cut or repack"
                )
            here = slice(at, at + size)
            ids, tag = torch.as_tensor(document.ids), torch.as_tensor(document.tags)
            tokens[r, here], labels[r, here] = ids[:-1], ids[1:]
            tags[r, here], label_tags[r, here] = tag[:-1], tag[1:]
            weights[r, here] = torch.as_tensor(document.is_trained)[1:].float()
            is_pad[r, here], documents[r, here] = False, d
            at += size
    return PackedBatch(
        tokens_BS=tokens,
        tags_BS=tags,
        labels_BS=labels,
        label_tags_BS=label_tags,
        loss_weights_BS=weights,
        documents_BS=documents,
        is_pad_BS=is_pad,
        token_map=token_map,
        is_packed=any(len(row) > 1 for row in rows),
    )
