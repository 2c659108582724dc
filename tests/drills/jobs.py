"""Drills of jobs beside each other, and of a job that is told to end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_most.checkpoint import Shelf
from megatron_most.runtime import Claim, claim, sha256_file
from megatron_most.train import EXIT_STOPPED
from megatron_most.train.stop import StopRequest
from tests.drills.bench import EVERY, Bench, Drill, Outcome, injected, require, state_of
from tests.drills.child import Child, notes, replace_everywhere

HELD_AT = EVERY + 1
GRACE_S = 30.0  # what a scheduler gives between its signal and its SIGKILL


def start_a_second_job(bench: Bench) -> Outcome:
    whole, run = bench.whole(1), bench.new()
    away = notes(run.folder, 0).parent
    held, go = away / "held", away / "go"

    def hold(child: Child) -> None:
        def wait() -> None:
            held.touch()
            child.wait_for(go)

        child.on("data", HELD_AT, wait)

    off, bench.off = bench.off, ()  # the control is about the second job
    first = run.start(1, hold)
    first.await_file(held)
    bench.off = off
    second = run.go(1)
    state = state_of(first.pids[0])
    go.touch()
    ended = first.end()
    injected(state in ("S", "R", "D"), f"the first job was in state {state!r} when the second had ended")
    require(second.codes == [2], f"the second job ended with {second.codes}: {second.last_lines()}")
    said = second.line("is writing here")
    require(not run.trace(1), "the second job has taken steps")
    require(ended.codes == [0], f"the first job ended with {ended.codes}: {ended.last_lines()}")
    again = run.require_unbroken(whole, allowed=0)
    return Outcome(
        f"a second job started while process {first.pids[0]} was at step {HELD_AT}", f"code 2: {said}", again
    )


def no_claim(child: Child) -> None:
    @contextmanager
    def careless(folder: Path) -> Iterator[Claim]:
        yield Claim(Path(folder), 1)

    replace_everywhere(claim, careless)


def wake_an_older_attempt(bench: Bench) -> Outcome:
    """The older attempt seems to run on another machine, where only its heartbeat tells that it lives, and falls
    asleep; the newer one takes the run over and ends it; then the older one wakes.
    """
    whole, run = bench.whole(1), bench.new()
    claims = sys.modules["megatron_most.runtime.claim"]

    def sleep(child: Child) -> None:
        here = claims.this_process()  # type: ignore[attr-defined]
        claims.this_process = lambda: {**here, "boot": "another machine"}  # type: ignore[attr-defined]
        claims.BEAT_S = 0.1  # type: ignore[attr-defined]

        def stop() -> None:
            child.wait_for(run.step(EVERY))
            child.prove(f"process {os.getpid()} stops itself in step {HELD_AT}")
            os.kill(os.getpid(), signal.SIGSTOP)

        child.on("forward", HELD_AT, stop)

    def be_impatient(child: Child) -> None:
        claims.DEAD_AFTER_S = 1.0  # type: ignore[attr-defined]

    older = run.start(1, sleep)
    older.await_file(run.step(EVERY))
    while state_of(older.pids[0]) not in ("T", "Z", ""):
        pass
    injected(state_of(older.pids[0]) == "T", "the older attempt did not stop")
    off, bench.off = bench.off, ()  # the control is about the older attempt
    newer = run.go(1, be_impatient)
    bench.off = off
    injected(state_of(older.pids[0]) == "T", "the older attempt woke too early")
    require(newer.codes == [0], f"the newer attempt ended with {newer.codes}: {newer.last_lines()}")
    newer.line("its last writer is dead")
    before = _content(run.folder)
    os.kill(older.pids[0], signal.SIGCONT)
    ended = older.end()
    steps = [line["done"] for line in run.done(0)]
    injected(steps[-1] > HELD_AT, f"the older attempt did not go on after it woke: {steps}, {ended.last_lines()}")
    after = _content(run.folder)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    require(not changed, f"the older attempt has changed {', '.join(changed[:5])}")
    require(ended.codes == [2], f"the older attempt ended with {ended.codes}: {ended.last_lines()}")
    said = ended.line("nothing more is written")
    run.require_unbroken(whole, allowed=len(steps) - EVERY)  # all that the older one took after its checkpoint
    return Outcome(f"{ended.proof[0]}, wakes after a newer attempt", f"code 2: {said}", HELD_AT - EVERY)


def _content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".claim")]
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def nobody_is_fenced(child: Child) -> None:
    Claim.check = lambda claim: None  # type: ignore[method-assign]
    Shelf.last_attempt = lambda shelf: 0  # type: ignore[method-assign]


def signal_before_the_time_limit(bench: Bench) -> Outcome:
    whole, run = bench.whole(), bench.new()
    away = notes(run.folder, 0).parent
    reached, go = away / "reached", away / "go"

    def inject(child: Child) -> None:
        def wait() -> None:
            if child.rank == 1:
                reached.touch()
            child.wait_for(go)

        child.on("forward", HELD_AT, wait)

    attempt = run.start(2, inject)
    attempt.await_file(reached)
    os.kill(attempt.pids[1], signal.SIGUSR1)
    go.touch()
    ended = attempt.end(GRACE_S)
    proof = f"SIGUSR1 to rank 1 alone, process {attempt.pids[1]}, in step {HELD_AT}"
    require(ended.codes == [EXIT_STOPPED] * 2, f"within {GRACE_S:g} s: {ended.codes}: {ended.last_lines()}")
    require(run.step(HELD_AT + 1).exists(), f"step {HELD_AT} is not saved")
    run.finish()
    again = run.require_unbroken(whole, allowed=0)
    return Outcome(proof, f"step {HELD_AT} finished and saved, both ranks ended with {EXIT_STOPPED}", again)


def deaf(child: Child) -> None:
    def listen_not(request: Any, folder: Path) -> None:
        request._file, request.reason = folder / "stop", ""

    StopRequest.__init__ = listen_not  # type: ignore[method-assign]


DRILLS = (
    Drill(
        name="second-job",
        about="a second job on the folder of a running one",
        protection="a folder is claimed by one job",
        off=no_claim,
        body=start_a_second_job,
    ),
    Drill(
        name="older-attempt",
        about="an attempt that seemed dead wakes after a newer one has ended the run",
        protection="an older attempt is fenced by its number",
        off=nobody_is_fenced,
        body=wake_an_older_attempt,
    ),
    Drill(
        name="signal",
        about="SIGUSR1 to one rank before the time limit",
        protection="signals are heard",
        off=deaf,
        body=signal_before_the_time_limit,
    ),
)
