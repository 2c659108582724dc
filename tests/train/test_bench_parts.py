"""Where a step's time goes: every part is told, and nothing twice."""

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


def module() -> Any:
    sys.path.insert(0, str(BENCH))
    import parts  # type: ignore[import-not-found]

    return parts


def test_time_is_that_of_the_part_entered_last() -> None:
    at = iter([0, 1, 3, 6, 10, 15, 21])
    watch = module().Watch(lambda: next(at))
    with watch.within("attention"):  # from 1
        watch.enter("norms")  # from 3
        watch.leave("norms")  # until 6
        watch.leave("router")  # was never entered: nothing changes
    watch.way = "backward"
    watch.leave("loss and the rest")  # stays open
    assert dict(watch.seconds) == {
        ("loss and the rest", "forward"): 1, ("attention", "forward"): 2 + 4 + 5, ("norms", "forward"): 3,
        ("loss and the rest", "backward"): 6,
    }  # fmt: skip


def shares(ranks: Ranks) -> list[dict[str, Any]]:
    changes = {"layout.expert": ranks.world_size, "engine.kind": "plain", "train.micro_batch_size": 2}
    changes |= {"train.global_batch_size": 2 * ranks.world_size}
    plan = make_plan(replace(load_recipe("most-tiny"), changes), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        return [vars(row) for row in module().rows_of(session, 2)]


@pytest.mark.parametrize("world", [1, 2])
def test_the_parts_of_a_step_are_all_of_it(world: int) -> None:
    for rows in run_ranks(shares, world):
        named = {row["part"].removeprefix("share of a step: "): row for row in rows}
        assert list(named) == module().ORDER
        assert sum(row["ratio"] for row in rows) == pytest.approx(1, abs=0.1)  # medians of two steps
        for part in ("attention", "router", "dispatch", "experts", "shared experts", "norms", "head"):
            assert "forward" in named[part]["ours"] and "backward" in named[part]["ours"], named[part]
