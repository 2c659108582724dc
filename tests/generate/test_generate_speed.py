"""What the cache and the batch are there for. The bounds are slack: the bench, on a machine of its own, asks for 5 and
3.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from megatron_most.runtime import Ranks
from tests.generate.models import opened
from tests.harness import run_ranks

BENCH = Path(__file__).resolve().parents[2] / "bench"


def measured(ranks: Ranks) -> list[dict[str, Any]]:
    sys.path.insert(0, str(BENCH))
    from generate import measure  # type: ignore[import-not-found]

    with opened(ranks, "mla") as model:
        return [vars(row) for row in measure(model, model.plan, past=1000, rows=8, new=25, rounds=3)]


def test_a_cached_token_and_a_batched_one_are_cheaper() -> None:
    [(cached, many)] = run_ranks(measured, 1)
    assert cached["ratio"] > 3 and many["ratio"] > 1.8, (cached, many)
    for row, wanted in ((cached, 5.0), (many, 3.0)):
        assert row["wanted"] == f"≥ {wanted:g}" and row["ok"] == (row["ratio"] >= wanted) and row["spread"] is not None
