"""Tags on their way to the router: boolean planes in Megatron-Core's `padding_mask` argument.

Core hands that argument explicitly to every layer and through recompute, but `MoELayer.forward` calls `.bool()` on
it, so integer tags would all become True. Plane 0 says "pad", planes 1.. are the bits of the tag. A module-wide
"current tags" instead is wrong under pipelines: the backward pass of one micro-batch would recompute with the tags of
another.
"""

# B batch, S sequence, P planes

from __future__ import annotations

import torch

from megatron_most.vocab import TAG_NAMES

NUM_BITS = max(1, (len(TAG_NAMES) - 1).bit_length())
NUM_PLANES = 1 + NUM_BITS


def to_planes(tags_BS: torch.Tensor, is_pad_BS: torch.Tensor) -> torch.Tensor:
    """[B, S] tags and pads -> [B, S, P] booleans."""
    bits = [(tags_BS >> bit) & 1 for bit in range(NUM_BITS)]
    return torch.stack([is_pad_BS.bool(), *(bit.bool() for bit in bits)], dim=-1)


def from_planes(planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., P] booleans -> (tags [...], pads [...]); the inverse of to_planes for any leading shape."""
    tags = planes[..., 1].long()
    for bit in range(1, NUM_BITS):
        tags.add_(planes[..., 1 + bit], alpha=1 << bit)
    return tags, planes[..., 0]
