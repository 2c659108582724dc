"""Training on made-up tagged tokens: the same steps for the first demo, benchmarks and smoke tests on a new cluster."""

from __future__ import annotations

from collections.abc import Callable

from megatron_most.config import Plan
from megatron_most.data import Kind, PackedBatch, pack_rows, synthetic_document
from megatron_most.parallel import Groups

CYCLE: tuple[Kind, ...] = ("mixed", "text", "audio", "wave")


def synthetic_steps(plan: Plan, groups: Groups) -> Callable[[int], list[PackedBatch]]:
    """step -> this data rank's micro-batches: rows of every kind in turn, the same global batch in every layout.

    Where the data-parallel size does not divide the global batch, the last rows of some ranks are pads.
    """
    train, ranks = plan.config.train, groups.data.size()

    def batches_of(step: int) -> list[PackedBatch]:
        first = step * train.global_batch_size
        rows: list[int | None] = list(range(first, first + train.global_batch_size)[groups.data.rank() :: ranks])
        rows += [None] * (plan.micro_batches * train.micro_batch_size - len(rows))
        starts = range(0, len(rows), train.micro_batch_size)
        return [_batch(plan, rows[start : start + train.micro_batch_size]) for start in starts]

    return batches_of


def _batch(plan: Plan, numbers: list[int | None]) -> PackedBatch:
    """One row a number; None is a row of pads."""
    length, seed = plan.config.train.sequence_length, plan.config.train.seed
    kinds = [None if number is None else CYCLE[number % len(CYCLE)] for number in numbers]
    pairs = zip(numbers, kinds, strict=True)
    rows = [
        [] if n is None or k is None else [synthetic_document(plan.tokens, k, length + 1, seed, n)] for n, k in pairs
    ]
    return pack_rows(rows, length, plan.tokens)
