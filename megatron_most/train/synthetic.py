"""Training on made-up tagged tokens: the same steps for the first demo, benchmarks and smoke tests on a new cluster."""

from __future__ import annotations

from collections.abc import Callable

from megatron_most.config import Plan
from megatron_most.data import Kind, PackedBatch, synthetic_batch
from megatron_most.errors import ConfigError
from megatron_most.parallel import Groups

CYCLE: tuple[Kind, ...] = ("mixed", "text", "audio", "wave")


def synthetic_steps(plan: Plan, groups: Groups) -> Callable[[int], list[PackedBatch]]:
    """step -> this data rank's micro-batches: rows of every kind in turn, the same global batch in every layout."""
    train, ranks = plan.config.train, groups.data.size()
    if train.global_batch_size % (train.micro_batch_size * ranks):
        wrong = f"does not divide into micro-batches of {train.micro_batch_size} rows on {ranks} data-parallel ranks"
        raise ConfigError("train.global_batch_size", train.global_batch_size, wrong, "use a multiple")

    def batches_of(step: int) -> list[PackedBatch]:
        rows = range(step * train.global_batch_size, (step + 1) * train.global_batch_size)[groups.data.rank() :: ranks]
        starts = range(0, len(rows), train.micro_batch_size)
        return [_batch(plan, rows[start : start + train.micro_batch_size]) for start in starts]

    return batches_of


def _batch(plan: Plan, rows: range) -> PackedBatch:
    kinds = [CYCLE[row % len(CYCLE)] for row in rows]
    return synthetic_batch(plan.tokens, kinds, plan.config.train.sequence_length, plan.config.train.seed, list(rows))
