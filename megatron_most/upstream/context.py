"""How Megatron-Core's context parallelism cuts a sequence: the zigzag order, for batches and for attention masks
alike.
"""

from __future__ import annotations

import torch


def zigzag(length: int, ranks: int, device: torch.device | None = None) -> torch.Tensor:
    """Positions in the order in which Core's context parallelism holds them, rank after rank.

    A sequence is cut into 2*ranks pieces and rank r holds pieces r and 2*ranks-1-r, so that each has the same causal
    work.
    """
    positions = torch.arange(length, device=device)
    if ranks == 1:
        return positions
    pieces = positions.view(2 * ranks, -1)
    order = [piece for rank in range(ranks) for piece in (rank, 2 * ranks - 1 - rank)]
    return pieces[order].flatten()


def piece(x: torch.Tensor, rank: int, ranks: int, dim: int = 1) -> torch.Tensor:
    """This context rank's part of a whole-sequence tensor."""
    if ranks == 1:
        return x
    positions = zigzag(x.size(dim), ranks, x.device).view(ranks, -1)[rank]
    return x.index_select(dim, positions)
