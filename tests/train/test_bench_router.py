"""The benchmark of routers does the same work on both sides, and turns what it timed into the ratios it names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import load_recipe, replace
from megatron_most.engine import make_plan, open_groups
from megatron_most.runtime import Ranks
from tests.harness import run_ranks

BENCH = Path(__file__).resolve().parents[2] / "bench"


def rows(ranks: Ranks) -> tuple[list[Any], list[bool]]:
    sys.path.insert(0, str(BENCH))
    import router  # type: ignore[import-not-found]

    plan = make_plan(replace(load_recipe("most-tiny"), {"train.global_batch_size": 4}), 1, ranks.device)
    moved: list[bool] = []
    cost = router.cost

    def looked_at(part: str, ours: Any, peer: Any, **words: Any) -> Any:
        row = cost(part, ours, peer, **words)
        moved.append(row.seconds["ours"] != row.seconds["peer"])
        return row

    router.cost = looked_at
    with open_groups(plan, ranks) as session:
        return [vars(row) for row in router.rows_of(session, 3)], moved


def test_a_router_is_timed_against_cores_own_and_against_a_step() -> None:
    (([stock, share], moved),) = run_ranks(rows, 1)
    assert moved == [True, True]
    assert (stock["part"], stock["wanted"], share["part"], share["wanted"]) == (
        "router / Core's own", "≤ 1.3", "routers / step", "≤ 0.02",
    )  # fmt: skip
    assert all(len(kept) == 3 and min(kept) > 0 for row in (stock, share) for kept in row["seconds"].values())
    assert 0.2 < stock["ratio"] < 5 and 0 < share["ratio"] < 0.9


def test_a_cost_is_the_median_of_paired_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delitem(sys.modules, "race", raising=False)
    import race  # type: ignore[import-not-found]

    seen: list[str] = []
    # Read before and after each turn: peer first, then ours first, then peer first.
    ticks = iter([0, 10, 10, 12, 0, 3, 3, 13, 0, 10, 10, 14])
    row = race.cost(
        "p", lambda: seen.append("a"), lambda: seen.append("b"),
        rounds=3, wanted=0.5, clock=lambda: float(next(ticks)), unit=2.0,
    )  # fmt: skip
    assert "".join(seen) == "ab" + "ba" + "ab" + "ba"
    assert row.seconds == {"ours": [4, 6, 8], "peer": [10, 10, 10]}
    assert (row.ratio, row.ok, row.wanted, row.spread) == (0.6, False, "≤ 0.5", pytest.approx(0.1))  # 0.4, 0.6, 0.8
