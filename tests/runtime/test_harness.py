"""The harness tells who failed, who hung and where; a green run of it must mean that every rank returned."""

from __future__ import annotations

import os
import time

import pytest
import torch

from megatron_most.runtime import Ranks
from tests.harness import RanksFailed, run_ranks


def give_back(ranks: Ranks, tensor_T: torch.Tensor) -> dict[str, object]:
    return {"rank": ranks.rank, "sum_T": tensor_T + ranks.rank, "threads": torch.get_num_threads()}


def test_values_come_back_in_rank_order() -> None:
    loss = torch.ones(256, 256, requires_grad=True)
    (loss @ loss).sum().backward()  # a child that kept the parent's threads would hang from here on
    values = run_ranks(give_back, 3, torch.arange(4))
    assert [(v["rank"], v["threads"]) for v in values] == [(0, 1), (1, 1), (2, 1)]
    assert all(torch.equal(v["sum_T"], torch.arange(4) + r) for r, v in enumerate(values))


def hang_on_rank_1(ranks: Ranks) -> None:
    if ranks.rank == 1:
        time.sleep(60)


def test_a_rank_that_hangs_is_named_with_the_line_it_hangs_at() -> None:
    with pytest.raises(RanksFailed, match=r"ranks \[0, 1\] hung") as failed:
        run_ranks(hang_on_rank_1, 2, timeout=3)
    assert "hang_on_rank_1" in failed.value.outcomes[1].stderr
    assert "barrier" in failed.value.outcomes[0].stderr


def vanish(ranks: Ranks) -> None:
    os._exit(0 if ranks.world_size == 1 else 3)


def test_a_rank_that_vanishes_is_a_failure() -> None:
    with pytest.raises(RanksFailed):
        run_ranks(vanish, 1)  # even with exit code 0: it did not return
    with pytest.raises(RanksFailed) as failed:
        run_ranks(vanish, 2)
    assert [o.exit_code for o in failed.value.outcomes] == [3, 3]
