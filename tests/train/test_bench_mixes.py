"""Steps at three mixes under expert parallelism: by turns, and each beside the mean of all."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import load_recipe, replace
from megatron_most.engine import make_plan, open_groups
from megatron_most.runtime import Ranks
from tests.harness import run_ranks

BENCH = Path(__file__).resolve().parents[2] / "bench"


def timed(ranks: Ranks) -> list[dict[str, Any]]:
    sys.path.insert(0, str(BENCH))
    import mixes  # type: ignore[import-not-found]

    changes = {"layout.expert": 2, "engine.kind": "plain", "engine.precision": "fp32", "train.sequence_length": 32}
    plan = make_plan(replace(load_recipe("most-tiny"), changes), 2, ranks.device)
    with open_groups(plan, ranks) as session:
        return [vars(row) for row in mixes.rows_of(session, 1, 3)]


def test_each_mix_is_told_beside_the_mean_of_three() -> None:
    one, other = run_ranks(timed, 2)
    assert one == other  # the slowest rank's time is everybody's
    times = [row["seconds"]["ours"] for row in one]
    assert [len(taken) for taken in times] == [3, 3, 3]
    means = [statistics.fmean(taken) for taken in zip(*times, strict=True)]
    for row, taken, mix in zip(one, times, (10, 50, 90), strict=True):
        assert f"{mix} % text" in row["part"] and row["ok"] is (row["ratio"] <= 1.03)
        assert row["ratio"] == pytest.approx(statistics.median(t / m for t, m in zip(taken, means, strict=True)))
