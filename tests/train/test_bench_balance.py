"""The count of routed tokens a rank: striped placement does not ask what the mix is, blocked does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import Facts, build, load_recipe
from megatron_most.engine import make_plan, open_groups
from megatron_most.runtime import Ranks
from tests.harness import run_ranks

BENCH = Path(__file__).resolve().parents[2] / "bench"


def module() -> Any:
    sys.path.insert(0, str(BENCH))
    import balance  # type: ignore[import-not-found]

    return balance


def counted(ranks: Ranks) -> list[Any]:
    """What `worst` says of even loads at each mix, then what two steps of most-tiny give."""
    import torch

    bench = module()
    moe = build(load_recipe("most-mini"), Facts(world_size=1, device="cpu", core_version=(0, 16))).moe
    even = []
    for mix in bench.MIXES:
        load_LE = torch.tensor([[float(mix)] * 8 + [100.0 - mix] * 8, [1.0] * 16])
        even += [[bench.worst(load_LE, moe, way, n, None) for way in ("striped", "blocked")] for n in bench.RANKS]
    bench.ROWS = 10
    plan = make_plan(load_recipe("most-tiny"), 1, ranks.device)
    with open_groups(plan, ranks) as session:
        rows = [vars(row) for row in bench.rows_of(session, 2, 1)]
        load_LE = bench.routed(bench.ours(session).model, [bench.mixed_batch(plan, 10, 0)])
    return [even, rows, load_LE.tolist(), plan.config.train.sequence_length, plan.moe.top_k]


def test_striped_ranks_have_equal_shares_at_every_mix_and_blocked_ones_do_not() -> None:
    ((even, rows, load_LE, length, top_k),) = run_ranks(counted, 1)
    assert [striped for striped, _ in even] == [1.0] * 6
    assert [blocked for _, blocked in even] == pytest.approx([1.8, 1.8, 1.0, 1.0, 1.8, 1.8])
    for load_E in load_LE:  # one row of text, nine of audio; experts 0 to 3 are text's
        assert sum(load_E[:4]) == length * top_k and sum(load_E[4:]) == 9 * length * top_k
    assert [row["part"].split(":")[0] for row in rows] == [
        f"busiest of {ranks} ranks, {mix} % text" for mix in (10, 50, 90) for ranks in (2, 4)
    ]
    for row in (*rows[:2], *rows[4:]):
        striped, blocked = map(float, row["peer"].split(" / "))
        assert row["ratio"] < striped < blocked and blocked > 1.7
        assert row["ok"] is (row["ratio"] <= 1.03)


def test_dealing_by_what_was_counted_evens_out_what_is_uneven_for_good() -> None:
    import torch

    bench = module()
    moe = build(load_recipe("most-mini"), Facts(world_size=1, device="cpu", core_version=(0, 16))).moe
    known_LE = torch.tensor([[8.0, 7, 6, 5, 4, 3, 2, 1] * 2, [1.0, 1, 1, 1, 3, 3, 3, 3] * 2])
    for ranks in bench.RANKS:
        assert bench.worst(known_LE, moe, "striped", ranks, None) > 1.4
        assert bench.worst(known_LE, moe, "striped", ranks, known_LE) == 1.0
