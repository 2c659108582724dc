"""Drills: ranks fail, are killed or hang up on the others, and everyone ends within seconds and says why.

Each drill blocks some rank for longer than it may last, so that it passes only if that rank was ended from outside.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch
import torch.distributed as dist

from megatron_most.errors import MostError
from megatron_most.runtime import Ranks, missing, run_command, watch
from tests.harness import Outcome, RanksFailed, run_ranks, warm

BLOCKED_S = 180
ALLOWED_S = 45  # far less than it is blocked for, and enough on a busy machine


def fail(body: Callable[..., None], world_size: int, meet: Literal["file", "tcp"]) -> list[Outcome]:
    """Run a drill, and check that nobody hung and how long it took."""
    warm()  # an import can take longer than all that is allowed
    start = time.monotonic()
    with pytest.raises(RanksFailed) as failed:
        run_ranks(body, world_size, meet=meet, timeout=BLOCKED_S / 2)
    outcomes = failed.value.outcomes
    assert not [o.rank for o in outcomes if o.hung], failed.value
    assert time.monotonic() - start < ALLOWED_S, failed.value
    assert all(o.exit_code != 0 for o in outcomes), failed.value
    return outcomes


def raise_while_others_reduce(ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == 1:
        raise ValueError("utterance 17 is empty,\nfile a.wav")
    dist.all_reduce(torch.ones(4))


@pytest.mark.parametrize("meet", ["file", "tcp"])
def test_a_raising_rank_ends_those_blocked_in_a_collective(meet: Literal["file", "tcp"]) -> None:
    outcomes = fail(raise_while_others_reduce, 3, meet)
    assert outcomes[1].error == "ValueError" and "Traceback" in outcomes[1].stderr
    assert not any("Traceback" in outcomes[rank].stderr for rank in (0, 2))
    assert all(re.search("rank 1 on .*: ValueError: utterance 17 is empty, . file a.wav", o.stderr) for o in outcomes)


def raise_while_others_compute(ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == 0:
        raise ValueError("disk full on rank zero")
    time.sleep(BLOCKED_S)


def test_a_raising_rank_0_lives_until_the_others_have_read_why() -> None:
    outcomes = fail(raise_while_others_compute, 3, "tcp")
    assert all("ValueError: disk full on rank zero" in o.stderr for o in outcomes)
    assert [o.exit_code for o in outcomes[1:]] == [1, 1] and not any(o.error for o in outcomes[1:])


def raise_while_one_waits_for_another(ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == 1:
        raise ValueError("nobody asked rank one")
    if ranks.rank == 2:
        time.sleep(BLOCKED_S)
    dist.recv(torch.ones(4), src=2)  # no connection to rank 1 is in use here


def test_a_raising_rank_ends_one_that_waits_for_a_third() -> None:
    outcomes = fail(raise_while_one_waits_for_another, 3, "file")
    assert all("ValueError: nobody asked rank one" in o.stderr for o in outcomes)


def be_killed_while_others_reduce(ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == ranks.world_size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(4))


def is_named(outcomes: list[Outcome], killed: int, how: str) -> None:
    """Those left say who is gone, in one line, and nothing else: no connection, no other rank, no traceback."""
    for o in outcomes:
        if o.rank != killed:
            assert (o.exit_code, o.error) == (1, None), o
            [line] = o.stderr.splitlines()
            assert re.search(rf"ends after rank {killed} on \S+ \(process \d+\) is {how}", line), line


@pytest.mark.parametrize("meet", ["file", "tcp"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_killed_rank_is_named_by_those_blocked_in_a_collective(world_size: int, meet: Literal["file", "tcp"]) -> None:
    outcomes = fail(be_killed_while_others_reduce, world_size, meet)
    assert outcomes[-1].exit_code == -signal.SIGKILL
    is_named(outcomes, world_size - 1, "gone: killed from outside")


def be_killed_far_away(ranks: Ranks) -> None:
    # Each rank is alone on its machine, as far as processes can tell.
    missing.Missing.is_gone = lambda *given: False  # type: ignore[method-assign]
    missing.Missing.rank_0_is_gone = lambda own: None  # type: ignore[method-assign]
    missing.is_running = lambda facts: False
    be_killed_while_others_reduce(ranks)


def test_a_killed_rank_of_another_machine_is_named_since_it_does_not_answer() -> None:
    outcomes = fail(be_killed_far_away, 3, "tcp")
    is_named(outcomes, 2, "gone, or out of reach: it does not answer")


def be_killed_while_the_other_computes(ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(BLOCKED_S)


def test_a_killed_rank_is_named_by_one_in_no_collective() -> None:
    is_named(fail(be_killed_while_the_other_computes, 2, "file"), 1, "gone: killed from outside")


def fail_alone_as_if_cut_off(ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == 1:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    time.sleep(BLOCKED_S)


def test_a_broken_connection_is_the_ranks_own_fault_where_all_answer() -> None:
    outcomes = fail(fail_alone_as_if_cut_off, 2, "file")
    assert outcomes[1].error == "RuntimeError" and "Traceback" in outcomes[1].stderr
    assert all(re.search("rank 1 on .*: RuntimeError: .gloo", o.stderr) for o in outcomes)


def look_late(ranks: Ranks) -> None:
    """Rank 1 comes to the end of its group long after the others have left, and looks around meanwhile."""
    if ranks.rank == 1:
        stop = watch.Watch.stop

        def late(own: watch.Watch) -> None:
            time.sleep(2)
            stop(own)

        watch.Watch.stop = late  # type: ignore[method-assign]


def test_ranks_that_have_left_are_not_missed() -> None:
    assert run_ranks(look_late, 3) == [None] * 3


def be_killed_while_others_compute(ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(BLOCKED_S)


def rank_0_is_killed_while_others_reduce(ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == 0:
        time.sleep(watch.POLL_S + 0.2)  # the others have looked around once
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(4))


@pytest.mark.parametrize("body", [be_killed_while_others_compute, rank_0_is_killed_while_others_reduce])
def test_a_killed_rank_0_ends_the_others_which_name_it_in_one_line(body: Callable[[Ranks], None]) -> None:
    outcomes = fail(body, 3, "tcp")  # the store is gone with it, of which torch would tell in thirty
    assert outcomes[0].exit_code == -signal.SIGKILL
    is_named(outcomes, 0, "gone: killed from outside")


def rank_0_is_killed_far_away(ranks: Ranks) -> None:
    missing.Missing.is_gone = lambda *given: False  # type: ignore[method-assign]
    missing.Missing.rank_0_is_gone = lambda own: None  # type: ignore[method-assign]
    be_killed_while_others_compute(ranks)


def test_a_killed_rank_0_of_another_machine_is_named_too() -> None:
    outcomes = fail(rank_0_is_killed_far_away, 2, "tcp")
    assert re.search(r"ends after the store of rank 0 on \S+ \(process \d+\) at 127.0.0.1:\d+ is", outcomes[1].stderr)


def two_are_killed_one_after_the_other(ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank in (1, 3):
        time.sleep(0.3 * (ranks.rank == 3))
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(BLOCKED_S)


def test_no_rank_waits_for_one_that_is_killed_while_another_is_mourned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "TOGETHER_S", 0.0)  # so that the second is killed after the first has been named
    monkeypatch.setattr(watch, "READ_S", float(BLOCKED_S))
    outcomes = fail(two_are_killed_one_after_the_other, 4, "tcp")
    assert all("ends after rank 1 on" in outcomes[rank].stderr for rank in (0, 2))


def test_two_ranks_that_are_killed_together_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing, "TOGETHER_S", 1.0)
    outcomes = fail(two_are_killed_one_after_the_other, 4, "tcp")
    for rank in (0, 2):
        said = outcomes[rank].stderr
        assert re.search(r"ends after rank 1 on \S+ \(process \d+\), rank 3 on .* are gone", said), said


def raise_alike(ranks: Ranks, errors: tuple[Exception, ...]) -> None:
    ranks.barrier()
    time.sleep(0.1 * ranks.rank)
    with pytest.raises(SystemExit) as ended:
        run_command(partial(raise_in_a_group, errors[ranks.rank % len(errors)], ranks))
    assert ended.value.code == 2
    os._exit(7)


def raise_in_a_group(error: Exception, ranks: Ranks) -> None:
    own = watch.Watch(ranks.launch, dist.distributed_c10d._get_default_store())
    own.report(error)
    raise error


def test_what_all_ranks_raise_is_said_once() -> None:
    for errors, said in (((MostError("no such\ndisk"),), 1), ((MostError("a"), MostError("b"), MostError("c")), 3)):
        with pytest.raises(RanksFailed) as failed:
            run_ranks(raise_alike, 3, errors)
        assert [o.exit_code for o in failed.value.outcomes] == [7, 7, 7], failed.value
        lines = [line for o in failed.value.outcomes for line in o.stderr.splitlines() if "] ends after" not in line]
        assert len(lines) == said, lines


def exit_while_others_compute(ranks: Ranks) -> None:
    ranks.barrier()
    if ranks.rank == 2:
        sys.exit("told to stop")
    time.sleep(BLOCKED_S)


def test_a_rank_that_exits_early_ends_the_others() -> None:
    outcomes = fail(exit_while_others_compute, 3, "file")
    assert outcomes[2].error == "SystemExit" and all("SystemExit: told to stop" in o.stderr for o in outcomes)


def raise_two_errors(ranks: Ranks) -> None:
    ranks.barrier()
    time.sleep(1.5 * ranks.rank)  # rank 1 fails by itself within the grace that follows rank 0's failure
    raise ValueError(f"own error of rank {ranks.rank}")


def test_a_rank_with_an_error_of_its_own_still_says_it() -> None:
    outcomes = fail(raise_two_errors, 2, "tcp")
    assert [o.message for o in outcomes] == ["own error of rank 0", "own error of rank 1"]
    assert "ends after rank 0 on" in outcomes[1].stderr


def raise_while_rank_0_is_frozen(ranks: Ranks) -> None:
    watch.LEAVE_S = 1
    ranks.barrier()
    if ranks.rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.5)
    raise ValueError("nobody listens")


def test_a_rank_that_cannot_tell_the_others_still_ends() -> None:
    with pytest.raises(RanksFailed) as failed:
        run_ranks(raise_while_rank_0_is_frozen, 2, meet="tcp", timeout=4)
    frozen, other = failed.value.outcomes
    assert frozen.hung and not other.hung and other.exit_code == 1
    assert "ValueError: nobody listens" in other.stderr and "Timeout" in other.stderr


def wait_at_the_end(ranks: Ranks) -> None:
    if ranks.rank == 1:
        time.sleep(1)
        raise ValueError("failed last")


def test_a_rank_that_is_done_does_not_wait_for_one_that_fails() -> None:
    outcomes = fail(wait_at_the_end, 2, "tcp")
    assert all("ValueError: failed last" in o.stderr for o in outcomes)
