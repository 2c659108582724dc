"""Drills of sudden ends: a rank is killed in the middle of a step, a process while it saves, a disk is full."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from megatron_most.checkpoint import Saver, Shelf, draft, tensor_file
from megatron_most.checkpoint.shelf import discard
from megatron_most.data import Position, Reader
from megatron_most.runtime import missing, sha256_file
from tests.drills.bench import EVERY, Bench, Drill, Ended, Outcome, injected, only, require
from tests.drills.child import WAIT_S, Child, Injection, replace_everywhere

KILLS, KILLED_STEPS = 20, 24
ENDS_WITHIN_S = 60.0  # half of what a hanging run is given


def data_begin_anew(child: Child) -> None:
    Reader.check_state = lambda reader, state: Position()  # type: ignore[method-assign]


def kill_one_rank(bench: Bench) -> Outcome:
    whole, run = bench.whole(), bench.new()
    killed_in = EVERY + 1

    def inject(child: Child) -> None:
        def die() -> None:
            child.wait_for(run.step(EVERY))  # a checkpoint is there, so that a loss of it would show
            child.prove(
                f"rank 1, process {os.getpid()}, kills itself by SIGKILL in the forward pass of step {killed_in}"
            )
            os.kill(os.getpid(), signal.SIGKILL)

        child.on("forward", killed_in, die)

    ended = run.go(2, only(1, inject), within_s=ENDS_WITHIN_S)
    last = run.trace(0, rank=1)[-1]
    injected(ended.codes[1] == -signal.SIGKILL and last.get("begun") == killed_in, f"{ended.codes}, {last}")
    require_named(ended, 1)
    run.finish()
    again = run.require_unbroken(whole, allowed=EVERY)
    return Outcome(ended.proof[0], f"rank 0 {ended.line('ends after')}; started again: as unbroken", again)


def require_named(ended: Ended, killed: int) -> None:
    """The others end with 1 and one line that names the rank that was killed."""
    for rank, (code, said) in enumerate(zip(ended.codes, ended.said, strict=True)):
        if rank == killed:
            continue
        require(code == 1, f"rank {rank} ended with {code} after {ended.seconds:.1f} s: {ended.last_lines()}")
        last = said.strip().splitlines()[-1]
        require(f"ends after rank {killed} on " in last and " is gone: killed" in last, f"rank {rank} blames: {last}")
        require("Traceback" not in said, f"rank {rank} shows a traceback, which is nobody's fault")


def kill_the_last_of_three(bench: Bench) -> Outcome:
    """Connections break between ranks that are innocent, too."""
    run = bench.new()

    def inject(child: Child) -> None:
        def die() -> None:
            child.prove(f"rank 2 of 3, process {os.getpid()}, kills itself by SIGKILL before step {EVERY}")
            os.kill(os.getpid(), signal.SIGKILL)

        child.on("step", EVERY, die)

    ended = run.go(3, only(2, inject), within_s=ENDS_WITHIN_S)
    injected(ended.codes[2] == -signal.SIGKILL, f"{ended.codes}")
    require_named(ended, 2)
    return Outcome(ended.proof[0], f"ranks 0 and 1 ended with 1: {ended.line('ends after')}")


def nobody_looks_around(child: Child) -> None:
    missing.Missing.look = lambda *given: None  # type: ignore[method-assign]


def old_ones_go_first(child: Child) -> None:
    write = Saver.write

    def make_room(saver: Saver, snapshot: Any) -> None:
        for step in saver.shelf.steps():
            discard(saver.shelf.path(step))
        write(saver, snapshot)

    Saver.write = make_room  # type: ignore[method-assign]


def kill_while_saving(bench: Bench) -> Outcome:
    """Attempts at one run, each killed at some touch of the disk while it saves, the last one left alone."""
    whole = bench.whole(1, KILLED_STEPS)
    run = bench.new(train__steps=KILLED_STEPS, checkpoint__every=1, checkpoint__keep=2)
    draw = random.Random(20)
    touches = _touches_of_a_save(bench)
    blocks = [at for at, what in enumerate(touches) if "block" in what]
    others = [at for at, what in enumerate(touches) if "block" not in what]
    points: list[str] = []
    newest, lost = 0, 0
    for number in range(KILLS):
        at, after = draw.choice(others if number % 2 else blocks), draw.randrange(2)
        ended = run.go(1, _killer(at, after))
        injected(ended.codes == [-signal.SIGKILL], f"killed at touch {at}: {ended.codes}: {ended.last_lines()}")
        points += ended.proof
        found = max(Shelf(run.checkpoints).steps(), default=0)
        saved = newest + after  # the save that was killed began when those before it had ended
        require(found >= saved, f"step {saved} was saved, and after a kill only step {found} is there")
        lost += len(run.done(run.attempts - 1)) - (found - newest)
        newest = found
    run.finish(1)
    # What is being written when the kill comes is taken again, and what was computed meanwhile.
    again = run.require_unbroken(whole, allowed=lost)
    require(lost <= 3 * KILLS, f"{lost} steps were lost in {KILLS} kills")
    places = sorted({int(point.split()[3].rstrip(",")) for point in points})
    happened = f"each time the newest or the one before was whole; at last step {KILLED_STEPS}, as unbroken"
    proof = f"{len(points)} SIGKILLs at {len(places)} of the {len(touches)} touches of the disk in a save: {places}"
    return Outcome(proof, happened, again)


def _touches_of_a_save(bench: Bench) -> list[str]:
    """How one save touches the disk, noted in a run that nobody kills."""
    with bench.protected():
        run = bench.new(train__steps=2, checkpoint__every=1)
        ended = run.go(1, _killer(None, after=1))
    injected(ended.codes == [0], ended.last_lines())
    return ended.proof


def _killer(at: int | None, after: int) -> Injection:
    """Kill at this touch of the checkpoints, counted from the beginning of the save that follows `after` others. A
    touch: opening, renaming, linking, making, removing, and each block that was written. None: note them, kill nobody.
    """

    def inject(child: Child) -> None:
        root, write, sha256 = str(child.run / "checkpoints"), Saver.write, tensor_file.hashlib.sha256
        saves, touches = 0, 0

        def touch(what: str) -> None:
            nonlocal touches
            if saves <= after:
                return
            if at is None or at == touches:
                child.prove(f"killed at touch {touches}, {what}")
                if at is not None:
                    os.kill(os.getpid(), signal.SIGKILL)
            touches += 1

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"):
                paths = [os.fspath(arg) for arg in args[:2] if isinstance(arg, str | os.PathLike)]
                if any(path.startswith(root) for path in paths):
                    touch(f"{event} {paths[0]}")

        class Digest:
            """Told of a block right after it was written."""

            def __init__(self) -> None:
                self._real = sha256()

            def update(self, block: Any) -> None:
                touch(f"a block of {len(block)} bytes")
                self._real.update(block)

            def hexdigest(self) -> str:
                return self._real.hexdigest()

        def count_saves(saver: Saver, snapshot: Any) -> None:
            nonlocal saves
            saver.wait()  # the one before has ended: touches are of this one
            saves += 1
            write(saver, snapshot)

        sys.addaudithook(hook)
        tensor_file.hashlib = type("hashes", (), {"sha256": Digest})  # type: ignore[assignment]
        Saver.write = count_saves  # type: ignore[method-assign]

    return inject


def torn_shards_count(child: Child) -> None:
    real = draft.write_tensors

    def write(path: Path, tensors: Any) -> tuple[int, str]:
        try:
            return real(path, tensors)
        except OSError:
            return path.stat().st_size, sha256_file(path)

    replace_everywhere(real, write)


def fill_the_disk(bench: Bench) -> Outcome:
    whole, run = bench.whole(), bench.new()
    room = 20_000

    def inject(child: Child) -> None:
        def limit() -> None:
            child.wait_for(run.step(EVERY))
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            try:
                (run.folder / "probe").write_bytes(bytes(room + 1))
            except OSError as error:
                child.prove(f"rank 1 may write {room} bytes a file from step {EVERY} on: {error.strerror}")
            (run.folder / "probe").unlink()

        def until_it_is_felt() -> None:
            until = time.monotonic() + WAIT_S
            while list(run.checkpoints.glob(".step-*")) and time.monotonic() < until:
                time.sleep(0.005)

        child.on("stepped", EVERY, limit)
        child.on("stepped", 2 * EVERY, until_it_is_felt)  # the first step beside the writing that fails

    ended = run.go(2, only(1, inject))
    injected(ended.proof, f"the limit was not felt; {ended.codes}: {ended.last_lines()}")
    require(ended.codes == [2, 2], f"the run ended with {ended.codes}: {ended.last_lines()}")
    said = ended.line("rank 1: ", "not saved: File too large", "make room")
    found = sorted(path.name for path in run.checkpoints.iterdir() if path.name != "latest")
    require(found == [f"step-{EVERY:08d}"], f"it left {found}")
    run.finish()
    again = run.require_unbroken(whole, allowed=EVERY + 1)  # of these, one while the last one was being written
    return Outcome(ended.proof[0], f"both ranks ended with 2: {said}", again)


DRILLS = (
    Drill(
        name="kill-rank",
        about="kill -9 of one rank in the middle of a step",
        protection="the place in the data is kept with the weights",
        off=data_begin_anew,
        body=kill_one_rank,
    ),
    Drill(
        name="kill-rank-of-three",
        about="kill -9 of the last of three ranks",
        protection="ranks look for one that is gone",
        off=nobody_looks_around,
        body=kill_the_last_of_three,
    ),
    Drill(
        name="kill-saving",
        about=f"kill -9 while a checkpoint is written, at {KILLS} random points",
        protection="old checkpoints stay until the new one has its name",
        off=old_ones_go_first,
        body=kill_while_saving,
    ),
    Drill(
        name="disk-full",
        about="no room for a shard while saving",
        protection="a shard that could not be written whole is never published",
        off=torn_shards_count,
        body=fill_the_disk,
    ),
)
