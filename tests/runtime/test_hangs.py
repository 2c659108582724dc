"""A job in which nothing goes on ends by itself, in time, and blames the rank that all others wait for."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist

from megatron_most.errors import LayoutError
from megatron_most.runtime import Launch, Ranks, find_device, judge, process_group, watch
from megatron_most.runtime.judge import Judge, Pace, Verdict
from megatron_most.runtime.pulse import Beat, Pulse
from tests.harness import Outcome, RanksFailed, free_port, launch_ranks, run_ranks, warm

LIMIT_S = 2.0
ALLOWED_S = 40.0  # beyond the limit: beats and looks, and the leaving, on a busy machine
BLOCKED_S = 180


def beat(serial: int, count: int, what: str = "", patience: float = 1.0, **more: float) -> Beat:
    said = {"own_s": 0.0, "rounds": 0, **more}
    return Beat(
        serial=serial, count=count, what=what or f"thing {count}", patience=patience, process={"host": "n1"}, **said
    )  # type: ignore[arg-type]


def looks(judge: Judge, beats_of: Callable[[int], dict[int, Beat]], times: int, seconds: float = 1.0) -> Verdict | None:
    """The first verdict of so many looks, `seconds` apart."""
    for at in range(1, times + 1):
        if verdict := judge.look(beats_of(at), seconds):
            return verdict
    return None


def test_the_rank_with_the_lowest_count_is_blamed() -> None:
    verdict = looks(
        Judge(10, range(3)), lambda at: {0: beat(at, 7), 1: beat(at, 6, "step 2: data"), 2: beat(at, 7)}, 12
    )
    assert verdict == Verdict(
        "rank 1 on n1 hangs at 'step 2: data' for 11 s; the others wait at 'thing 7'", (1,), False
    )


def test_where_nobody_is_behind_nobody_is_singled_out() -> None:
    verdict = looks(Judge(10, range(3)), lambda at: {rank: beat(at, 7) for rank in range(3)}, 12)
    assert verdict is not None and verdict.culprits == (0, 1, 2)
    assert verdict.words.startswith("all 3 ranks hang at 'thing 7' for 11 s, none behind the others")


def test_a_rank_whose_beat_is_stale_or_never_came_is_silent() -> None:
    verdict = looks(Judge(10, range(3)), lambda at: {0: beat(at, at), 1: beat(min(at, 3), 3), 2: beat(at, at)}, 20)
    assert verdict is not None and (verdict.culprits, verdict.are_silent) == ((1,), True)
    assert "rank 1 on n1 hangs: no sign of life for 9 s, it was last at 'thing 3'" in verdict.words
    verdict = looks(Judge(10, range(2)), lambda at: {0: beat(at, 1)}, 20)
    assert verdict is not None and "rank 1 on ? hangs: no sign of life for 11 s, it was never heard of" in verdict.words


def test_no_verdict_while_things_go_on_or_may_take_long_or_nobody_says_what_it_does() -> None:
    assert looks(Judge(10, range(2)), lambda at: {0: beat(at, at // 9 + 1), 1: beat(at, at // 9 + 1)}, 100) is None
    assert looks(Judge(10, range(2)), lambda at: {0: beat(at, 0), 1: beat(at, 0)}, 100) is None
    # Rank 1 saves, which may take long; that rank 0 waits for it beyond its own limit is no hang.
    assert looks(Judge(10, range(2)), lambda at: {0: beat(at, 5), 1: beat(at, 4, patience=4)}, 40) is None
    assert looks(Judge(10, range(2)), lambda at: {0: beat(at, 5), 1: beat(at, 4, patience=4)}, 42) is not None


def test_one_that_looks_at_one_other_rank_only_sees_its_silence() -> None:
    assert looks(Judge(10, range(1), are_all=False), lambda at: {0: beat(at, 3)}, 100) is None
    verdict = looks(Judge(10, range(1), are_all=False), lambda at: {0: beat(3, 3)}, 100)
    assert verdict is not None and verdict.culprits == (0,)


def test_a_pulse_counts_and_adds_up_what_is_a_ranks_own() -> None:
    clock = iter([10.0, 12.5, 20.0, 20.25])
    pulse = Pulse(lambda: next(clock))
    pulse.at("starting", patience=4)
    for _ in range(2):
        pulse.at("data", is_own=True)
        pulse.at("engine")
    found = pulse.beat(9, {"host": "a"})
    assert found == Beat.from_json(found.to_json())
    assert (found.serial, found.count, found.what, found.own_s, found.rounds) == (9, 5, "engine", 2.75, 2)


@pytest.fixture
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "EVERY_STEPS", 10)


def paces(own: list[list[float]], step_s: float = 1.0) -> Iterator[list[str]]:
    """What is said after each interval of ten steps with these seconds of their own of each rank, a step."""
    pace, total = Pace(len(own[0])), [0.0] * len(own[0])
    pace.look({rank: beat(1, 1, rounds=1) for rank in range(len(total))}, 0.0)
    for at, per_step in enumerate(own, 1):
        total = [before + 10 * more for before, more in zip(total, per_step, strict=True)]
        beats = {rank: beat(1, 1, own_s=s, rounds=10 * at + 1) for rank, s in enumerate(total)}
        yield pace.look(beats, 10 * at * step_s)


def test_a_rank_slow_in_several_intervals_is_named_and_one_slow_now_and_then_is_not(short_intervals: None) -> None:
    usual, slow = [0.1, 0.11, 0.12, 0.1], [0.1, 0.11, 0.5, 0.1]
    said = list(paces([slow, usual, slow, slow, slow, slow, usual]))
    assert [len(lines) for lines in said] == [0, 0, 0, 0, 1, 0, 0]
    assert said[4][0].startswith(
        "rank 2 on n1 is slow: 0.5 s a step before it first meets the others, whose median is 0.1 s"
    )
    assert not any(paces([[0.001, 0.004]] * 9)), "a trifle, though four times the other's"
    assert [len(lines) for lines in paces([[0.1, 0.3]] * 3)] == [0, 0, 1]  # of two, the slow one is not the median


# On real processes


def hang(body: Callable[..., None], world_size: int, meet: Literal["file", "tcp"] = "file") -> list[Outcome]:
    warm()
    start = time.monotonic()
    with pytest.raises(RanksFailed) as failed:
        run_ranks(body, world_size, meet=meet, timeout=BLOCKED_S / 2, hang_after_s=LIMIT_S)
    outcomes = failed.value.outcomes
    assert not [o.rank for o in outcomes if o.hung], failed.value
    assert time.monotonic() - start < LIMIT_S + ALLOWED_S, failed.value
    return outcomes


def steps(ranks: Ranks, number: int) -> None:
    watch.GRACE_S, watch.READ_S = 0.5, 1.0
    for step in range(number):
        ranks.pulse.at(f"step {step}: data", is_own=True)
        ranks.pulse.at(f"step {step}: engine")
        ranks.barrier()


def sleep_over_its_data(ranks: Ranks) -> None:
    steps(ranks, 3)
    ranks.pulse.at("step 3: data")
    if ranks.rank == 1:
        time.sleep(BLOCKED_S)
    ranks.pulse.at("step 3: engine")
    dist.all_reduce(torch.ones(4))


def test_a_rank_that_does_not_arrive_is_named_and_shows_its_stack() -> None:
    outcomes = hang(sleep_over_its_data, 3)
    said = "rank 1 on .* hangs at 'step 3: data' for .* s; the others wait at 'step 3: engine'"
    assert all(re.search(said, o.stderr) and o.exit_code == 1 for o in outcomes)
    stack = r"line \d+ in sleep_over_its_data"  # as faulthandler writes it
    assert re.search(stack, outcomes[1].stderr)
    assert not re.search(stack, outcomes[0].stderr + outcomes[2].stderr)


def all_wait(ranks: Ranks) -> None:
    steps(ranks, 1)
    ranks.pulse.at("step 1: engine")
    dist.recv(torch.ones(1), src=1 - ranks.rank)  # nobody sends


def test_ranks_that_wait_for_each_other_are_all_named_and_all_show_their_stacks() -> None:
    outcomes = hang(all_wait, 2)
    assert all("all 2 ranks hang at 'step 1: engine'" in o.stderr for o in outcomes)
    assert all(re.search(r"line \d+ in all_wait", o.stderr) for o in outcomes)


def hang_alone(ranks: Ranks) -> None:
    steps(ranks, 2)
    ranks.pulse.at("step 2: data")
    time.sleep(BLOCKED_S)


def test_a_process_that_is_alone_ends_too() -> None:
    [outcome] = hang(hang_alone, 1)
    assert outcome.exit_code == 1 and re.search(r"line \d+ in hang_alone", outcome.stderr)
    assert re.search("rank 0 on .* hangs at 'step 2: data' for .* s; its stack follows", outcome.stderr)


def freeze_1(ranks: Ranks) -> None:
    steps(ranks, 2)
    time.sleep(1)  # its beat is known
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(4))


def test_a_rank_whose_process_stands_still_is_named_by_the_others_and_killed() -> None:
    outcomes = hang(freeze_1, 3)
    assert outcomes[1].exit_code == -signal.SIGKILL
    assert all("rank 1 on" in o.stderr and "no sign of life for" in o.stderr for o in (outcomes[0], outcomes[2]))


def freeze_0(ranks: Ranks) -> None:
    steps(ranks, 2)
    time.sleep(1)
    if ranks.rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(4))


@pytest.mark.parametrize(
    ("meet", "said"),
    [("file", "rank 0 on .* hangs: no sign of life for"), ("tcp", "the store of rank 0 on .* hangs: no answer for")],
)
def test_a_frozen_rank_0_is_found_too_though_it_is_the_judge_and_keeps_the_store(
    meet: Literal["file", "tcp"], said: str
) -> None:
    outcomes = hang(freeze_0, 3, meet)
    assert outcomes[0].exit_code == -signal.SIGKILL
    assert all("rank 0" in o.stderr and o.exit_code == 1 for o in outcomes[1:])
    assert any(re.search(said, o.stderr) for o in outcomes[1:])  # the first; the other may see that it was killed


def sleep_as_a_whole(ranks: Ranks, pids: str) -> int:
    """A scheduler stops the job and wakes it after longer than the limit."""
    steps(ranks, 2)
    if ranks.rank == 0 and os.fork() == 0:
        time.sleep(1)
        everyone = [os.getppid(), int(open(pids).read())]
        for pid in everyone:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2)
        for pid in everyone:
            os.kill(pid, signal.SIGCONT)
        os._exit(0)
    time.sleep(2)
    steps(ranks, 2)
    return ranks.rank


def note_and_sleep_as_a_whole(ranks: Ranks, pids: str) -> int:
    if ranks.rank == 1:
        with open(pids, "w") as file:
            file.write(str(os.getpid()))
    ranks.barrier()
    return sleep_as_a_whole(ranks, pids)


def test_a_job_that_was_put_to_sleep_as_a_whole_goes_on(tmp_path: Path) -> None:
    assert run_ranks(note_and_sleep_as_a_whole, 2, f"{tmp_path}/pid", meet="tcp", hang_after_s=1) == [0, 1]


def one_is_slow(ranks: Ranks) -> str:
    judge.EVERY_STEPS, judge.IN_A_ROW = 10, 2
    for _ in range(60):
        ranks.pulse.at("data", is_own=True)
        time.sleep(0.05 if ranks.rank == 2 else 0.005)
        ranks.pulse.at("engine")
        ranks.barrier()
    with open("/proc/self/fd/2") as file:
        return file.read()


def test_a_slow_rank_is_named_and_no_other() -> None:
    said = run_ranks(one_is_slow, 4, hang_after_s=10)
    assert re.search(r"rank 2 on \S+ is slow: 0\.05\d* s a step", said[0]), said[0]
    assert not re.search(r"rank [013] on \S+ is slow", "".join(said)) and "is slow" not in "".join(said[1:])


def wait_for_others(launch: Launch, port: int, said: Path) -> int:
    watch.READ_S = 0.1
    try:
        with process_group(Launch(world_size=3, port=port), find_device("cpu"), timeout_s=1):
            return 0
    except LayoutError as error:
        said.write_text(str(error))
        return 2


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    assert launch_ranks(wait_for_others, 1, free_port(), tmp_path / "said") == [2]
    assert re.match("of 3 ranks these have not come within 1 s: 1, 2; look at", (tmp_path / "said").read_text())
