"""Drills of ranks that do not go on, or not as fast as the others."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

from megatron_most.engine import session
from megatron_most.runtime import judge, process_group
from tests.drills.bench import EVERY, STEPS, Bench, Drill, Outcome, injected, only, require
from tests.drills.child import Child

LIMIT_S = 3.0
ALLOWED_S = 60.0  # beyond the limit, on a busy machine: starting, the steps before, beats and looks, and the leaving
HUNG_IN = EVERY + 1


def hang_one_rank(bench: Bench) -> Outcome:
    whole, run = bench.whole(), bench.new(train__hang_after_s=LIMIT_S)

    def inject(child: Child) -> None:
        def read_from_a_dead_disk() -> None:
            child.wait_for(run.step(EVERY))
            child.prove(f"rank 1, process {os.getpid()}, sleeps for ever over the data of step {HUNG_IN}")
            time.sleep(3600)

        child.on("data", HUNG_IN, read_from_a_dead_disk)

    ended = run.go(2, only(1, inject), within_s=LIMIT_S + ALLOWED_S)
    injected(ended.proof, f"rank 1 did not get there: {ended.codes}: {ended.last_lines()}")
    require(None not in ended.codes, f"after {ended.seconds:.1f} s the ranks still live: {ended.codes}")
    require(0 not in ended.codes, f"the run ended with {ended.codes}")
    said = ended.line("rank 1 on", f"hangs at 'step {HUNG_IN}: data'", "the others wait")
    stack = re.search(r"line \d+ in read_from_a_dead_disk", ended.said[1])
    require(stack, "the stack of rank 1 does not show where it was")
    run.finish()
    return Outcome(ended.proof[0], f"{said}; its stack shows it", run.require_unbroken(whole, allowed=EVERY))


def stop_one_rank(bench: Bench) -> Outcome:
    whole, run = bench.whole(), bench.new(train__hang_after_s=LIMIT_S)

    def inject(child: Child) -> None:
        def stop() -> None:
            child.wait_for(run.step(EVERY))
            child.prove(f"rank 1, process {os.getpid()}, stops itself by SIGSTOP in the forward pass of step {HUNG_IN}")
            os.kill(os.getpid(), signal.SIGSTOP)

        child.on("forward", HUNG_IN, stop)

    ended = run.go(2, only(1, inject), within_s=LIMIT_S + ALLOWED_S)
    injected(ended.proof, f"rank 1 did not get there: {ended.codes}: {ended.last_lines()}")
    require(None not in ended.codes, f"after {ended.seconds:.1f} s the ranks still live: {ended.codes}")
    said = ended.line("rank 1 on", "no sign of life")
    require(ended.codes[1] == -signal.SIGKILL and ended.codes[0] != 0, f"the run ended with {ended.codes}")
    run.finish()
    return Outcome(ended.proof[0], said, run.require_unbroken(whole, allowed=EVERY))


def nobody_watches(child: Child) -> None:
    def open_group(*args: Any, hang_after_s: float = 0.0) -> Any:
        return process_group(*args)

    session.process_group = open_group  # type: ignore[assignment]


def slow_one_rank_down(bench: Bench) -> Outcome:
    whole, run = bench.whole(), bench.new(train__hang_after_s=10.0)

    def inject(child: Child) -> None:
        judge.EVERY_STEPS, judge.IN_A_ROW = 2, 2
        if child.rank == 1:
            child.prove(f"rank 1 sleeps 0.5 s over the data of each of {STEPS} steps")
            child.on("data", None, lambda: time.sleep(0.5))

    ended = run.go(2, inject)
    require(ended.codes == [0, 0], f"the run ended with {ended.codes}: {ended.last_lines()}")
    said = ended.line("rank 1 on", "is slow")
    require(not re.search(r"rank 0 on \S+ is slow", ended.all_said), f"rank 0 is blamed too: {ended.all_said}")
    return Outcome(ended.proof[0], said, run.require_unbroken(whole, allowed=0))


def nobody_is_slow(child: Child) -> None:
    judge.Pace.look = lambda pace, beats, now: []  # type: ignore[method-assign]


DRILLS = (
    Drill(
        name="hung-rank",
        about="a rank that never comes back from reading",
        protection="the watch over progress",
        off=nobody_watches,
        body=hang_one_rank,
    ),
    Drill(
        name="stopped-rank",
        about="a rank whose process stands still",
        protection="the watch over progress",
        off=nobody_watches,
        body=stop_one_rank,
    ),
    Drill(
        name="slow-rank",
        about="a rank that keeps the others waiting",
        protection="the report of stragglers",
        off=nobody_is_slow,
        body=slow_one_rank_down,
    ),
)
