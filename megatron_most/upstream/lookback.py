"""What new tokens attend to when a model is run token by token: the cache of past ones, and one step's view of it.

A step lays the new tokens of all sequences end to end, without pads, as one row of N: prompts of any lengths and
single tokens alike. It reaches every layer in Core's `attention_mask` argument, where training has document numbers.
Core's own inference contexts want Transformer Engine or a GPU for latents, ragged batches and positions by row.
"""

# N new tokens of all rows, B rows, T positions of the longest row, H heads, G query heads per key head, D head width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F

BLOCK = 256
"""Positions by which a cache grows, at least."""


class KVCache:
    """For each layer tensors [rows, positions, ...] of what is kept of past tokens. `lengths`: positions taken."""

    def __init__(self, rows: int, length: int) -> None:
        self.lengths = [0] * rows
        self._capacity = _round_up(length)
        self._kept: dict[tuple[int, str], torch.Tensor] = {}

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def num_bytes(self) -> int:
        return sum(kept.numel() * kept.element_size() for kept in self._kept.values())

    def reserve(self, length: int) -> None:
        """Room for rows of `length`; half as much again where it is too small, so that copies stay rare."""
        if length <= self._capacity:
            return
        more = _round_up(max(length, self._capacity + self._capacity // 2)) - self._capacity
        self._capacity += more
        for key, kept in self._kept.items():
            room = kept.new_zeros(kept.size(0), more, *kept.shape[2:])
            self._kept[key] = torch.cat([kept, room], dim=1)

    def put(
        self, layer: int, name: str, row_N: torch.Tensor, position_N: torch.Tensor, new: torch.Tensor
    ) -> torch.Tensor:
        """Write [N, ...] at its rows and positions; all that is kept of the name, for the rows in use."""
        kept = self._kept.get((layer, name))
        if kept is None:  # zeros: what is never attended to gets weight 0, and 0 times old memory may be NaN
            kept = self._kept[layer, name] = new.new_zeros(len(self.lengths), self._capacity, *new.shape[1:])
        kept[row_N, position_N] = new
        return kept[: len(self.lengths)]

    def keep(self, rows: Sequence[int]) -> None:
        """Row i becomes what rows[i] was, the others go. Only rows that move are copied: to a place that is left."""
        moved = [(to, row) for to, row in enumerate(rows) if to != row]
        assert all(row >= len(rows) for _, row in moved) and len({*rows}) == len(rows), f"rows {rows} overwrite others"
        for kept in self._kept.values():
            for to, row in moved:
                kept[to] = kept[row]
        self.lengths = [self.lengths[row] for row in rows]


def _round_up(length: int) -> int:
    return -(-max(length, 1) // BLOCK) * BLOCK


@dataclass(frozen=True)
class Span:
    """The new tokens of one row: `count` of them from place `first` in the step's N, after `past` older ones."""

    row: int
    past: int
    first: int
    count: int


class Lookback:
    """One step. Without a cache nothing is kept, and every row begins with its new tokens."""

    def __init__(self, cache: KVCache | None, rows: Sequence[int], counts: Sequence[int], device: torch.device) -> None:
        self.cache = cache
        past = [cache.lengths[row] if cache else 0 for row in rows]
        firsts = [0, *accumulate(counts)][:-1]
        self.spans = [Span(*of) for of in zip(rows, past, firsts, counts, strict=True)]
        self.num_tokens = sum(counts)
        self.longest = max(p + n for p, n in zip(past, counts, strict=True))
        # Lists first: each operation on a tensor costs a step of one token as much as one of thousands.
        positions = [p + i for p, n in zip(past, counts, strict=True) for i in range(n)]
        self.position_N, self.row_N = torch.tensor(
            [positions, [row for row, n in zip(rows, counts, strict=True) for _ in range(n)]], device=device
        )
        # One new token in each row there is: the usual step, done for all rows at once.
        self.is_even = cache is not None and [*rows] == [*range(len(cache.lengths))] and set(counts) == {1}
        # Where rows differ in length, what each of them sees in such a step; otherwise all see all there is.
        is_ragged = self.is_even and min(past) + 1 < self.longest
        self.seen_BT = torch.arange(self.longest, device=device) <= self.position_N[:, None] if is_ragged else None
        self.turns: tuple[torch.Tensor, torch.Tensor] | None = None
        """Cosines and sines of the new tokens' positions, from the first layer that works them out."""
        if cache is not None:
            cache.reserve(self.longest)

    def put(self, layer: int, name: str, new: torch.Tensor) -> torch.Tensor:
        """Keep [N, ...] of the new tokens; all there is of the name."""
        assert self.cache is not None, "a step without a cache keeps nothing"
        return self.cache.put(layer, name, self.row_N, self.position_N, new)

    def done(self) -> None:
        """After the last layer: the new tokens are past."""
        if self.cache is not None:
            for span in self.spans:
                self.cache.lengths[span.row] = span.past + span.count


def causal(past: int, count: int, device: torch.device) -> torch.Tensor:
    """[count, past + count]: what each of the new tokens sees."""
    return torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lookback: Lookback, layer: int, scale: float | None
) -> torch.Tensor:
    """Keys and values are kept as they are (fewer heads than queries): [N, 1, H, D] each -> [N, 1, H*D].

    Places past the step's tokens fill up sequence parallelism's equal parts, and get zeros.
    """
    n = lookback.num_tokens
    out = query.new_zeros(query.size(0), 1, query.size(2) * value.size(3))
    query, key, value = (x[:n, 0] for x in (query, key, value))
    heads = key.size(1)
    if lookback.cache is not None:
        keys, values = lookback.put(layer, "key", key), lookback.put(layer, "value", value)
    if lookback.is_even:
        grouped = query.unflatten(1, (heads, -1))  # [B, H, G, D]: the query heads of a key head as its positions
        seen = None if lookback.seen_BT is None else lookback.seen_BT[:, None, None]
        k, v = (x[:, : lookback.longest].transpose(1, 2) for x in (keys, values))
        attended = F.scaled_dot_product_attention(grouped, k, v, attn_mask=seen, scale=scale)
        out[:n, 0] = attended.flatten(1)
        return out
    for span in lookback.spans:
        here = slice(span.first, span.first + span.count)
        total = span.past + span.count
        k, v = (keys[span.row, :total], values[span.row, :total]) if lookback.cache else (key[here], value[here])
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query[here], k, v))
        mask = causal(span.past, span.count, q.device) if span.past else None
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.size(1) != heads
        )
        out[here, 0] = attended[0].transpose(0, 1).flatten(1)
    return out
