"""What the cache and the batch are there for. The bounds are slack: the bench, on a machine of its own, asks for 5 and
3.
"""

from __future__ import annotations

from bench.generate import measure
from megatron_most.runtime import Ranks
from tests.generate.models import opened
from tests.harness import run_ranks


def measured(ranks: Ranks) -> dict[str, float]:
    with opened(ranks, "mla") as model:
        return measure(model, model.plan, past=1000, rows=8, new=25, rounds=3)


def test_a_cached_token_and_a_batched_one_are_cheaper() -> None:
    [found] = run_ranks(measured, 1)
    assert found["cache_ratio"] > 3 and found["batch_ratio"] > 1.8, found
