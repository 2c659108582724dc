"""What a drill works with: runs of a tiny model in real processes, forked from this one, and what came of them.

This process imports everything once and never trains: a fork costs a tenth of a second, an import many. Two runs that
no drill harms are made once and shared: the unbroken one, and one stopped where it had just saved.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from megatron_most.config import RunConfig, load_recipe, replace
from megatron_most.runtime import Launch
from megatron_most.train import EXIT_STOPPED
from tests.datasets import random_documents, write_dataset
from tests.drills.child import Child, Injection, be_rank, notes

STEPS, EVERY = 8, 3
STOPPED = 2 * EVERY  # where the shared run was stopped, just after a checkpoint
ENDS_S = 120.0  # a run that is not done by then hangs
_FORK: Any = multiprocessing.get_context("fork")


class Failed(Exception):
    """The product did not do what the drill demands."""


class NotInjected(Exception):
    """The harm was not done, so nothing was proven either way."""


def require(is_so: object, otherwise: str) -> None:
    if not is_so:
        raise Failed(otherwise)


def injected(is_so: object, otherwise: str) -> None:
    if not is_so:
        raise NotInjected(otherwise)


@dataclass(frozen=True)
class Outcome:
    """A drill that was passed, in words."""

    injected: str
    """With the proof."""
    happened: str
    again: int | None = None
    """Steps taken twice; None where nothing was to be taken again."""


@dataclass(frozen=True, kw_only=True)
class Drill:
    """One fault, and what must come of it."""

    name: str
    about: str
    protection: str
    """What its control switches off."""
    off: Injection
    """The switching off, in the child."""
    body: Callable[[Bench], Outcome]


@dataclass(frozen=True)
class Ended:
    """How the ranks of one attempt ended."""

    codes: list[int | None]
    """Negative: the signal that killed it. None: it was still alive when its time was over, and then killed."""
    said: list[str]
    """Their stderr."""
    proof: list[str]
    """What the injections wrote down."""
    seconds: float

    @property
    def all_said(self) -> str:
        return "\n".join(self.said)

    def line(self, *words: str) -> str:
        """The first line that has all of the words; Failed where there is none."""
        for line in self.all_said.splitlines():
            if all(word in line for word in words):
                return line.split("] ", 1)[-1]
        raise Failed(f"nobody said {' ... '.join(words)!r}; codes {self.codes}; the last lines: {self.last_lines()}")

    def last_lines(self) -> str:
        return " / ".join(" | ".join(said.strip().splitlines()[-2:]) for said in self.said)


@dataclass
class Attempt:
    """One start of a run."""

    processes: list[BaseProcess]
    folder: Path
    started: float = field(default_factory=time.monotonic)

    def end(self, within_s: float = ENDS_S) -> Ended:
        """Wait for all ranks. Those that do not end are killed and have no code."""
        until = time.monotonic() + within_s
        alive = []
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
            alive.append(process.is_alive())
        seconds = time.monotonic() - self.started
        self.kill()
        codes = [None if late else process.exitcode for process, late in zip(self.processes, alive, strict=True)]
        said = [_text(self.folder / f"stderr-{rank}") for rank in range(len(codes))]
        return Ended(codes, said, _text(self.folder / "proof").splitlines(), seconds)

    def kill(self) -> None:
        """A stopped process too."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def await_file(self, path: Path) -> None:
        until = time.monotonic() + ENDS_S
        while not path.exists():
            gone = [process.exitcode for process in self.processes if not process.is_alive()]
            injected(not gone, f"the run ended with {gone} before {path.name} came")
            injected(time.monotonic() < until, f"{path.name} never came")
            time.sleep(0.005)

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self.processes]


class Run:
    """One run folder and all attempts at it."""

    def __init__(self, bench: Bench, folder: Path, config: RunConfig) -> None:
        self.bench, self.folder, self.config = bench, folder, config
        self.attempts = 0

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def step(self, number: int) -> Path:
        return self.checkpoints / f"step-{number:08d}"

    def start(self, world: int = 2, *injections: Injection, **changes: Any) -> Attempt:
        """Fork the ranks. In a control they lack the protection of the drill."""
        config = replace(self.config, {name.replace("__", "."): value for name, value in changes.items()})
        folder = notes(self.folder, self.attempts)
        folder.mkdir(parents=True)
        store = folder / "store" if world > 1 else None
        ranks = [
            Launch(rank=rank, world_size=world, local_rank=rank, local_world_size=world, store_file=store)
            for rank in range(world)
        ]
        all_injections = (*self.bench.off, *injections)
        processes = [
            _FORK.Process(target=be_rank, args=(launch, config, self.folder, self.attempts, all_injections))
            for launch in ranks
        ]
        self.attempts += 1
        attempt = Attempt(processes, folder)
        self.bench.running.append(attempt)
        for process in processes:
            process.start()
        return attempt

    def go(self, world: int = 2, *injections: Injection, within_s: float = ENDS_S, **changes: Any) -> Ended:
        return self.start(world, *injections, **changes).end(within_s)

    def finish(self, world: int = 2, **changes: Any) -> Ended:
        """Start it again, unharmed, to its end."""
        ended = self.go(world, **changes)
        require(ended.codes == [0] * world, f"started again it ended with {ended.codes}: {ended.last_lines()}")
        return ended

    def trace(self, attempt: int, rank: int = 0) -> list[dict[str, Any]]:
        return _lines(notes(self.folder, attempt) / f"trace-{rank}")

    def done(self, attempt: int | None = None) -> list[dict[str, Any]]:
        """Steps taken, of one attempt or all."""
        attempts = range(self.attempts) if attempt is None else [attempt]
        return [line for number in attempts for line in self.trace(number) if "done" in line]

    @property
    def log(self) -> list[dict[str, Any]]:
        """What the run has published: its metrics, a line a step."""
        return [line for line in _lines(self.folder / "metrics.jsonl") if "gradient_norm" in line]

    def require_unbroken(self, whole: Run, allowed: int, rel: float = 0.0) -> int:
        """The stitched log is the unbroken run's, and at most `allowed` steps were taken twice; how many were."""
        steps, wanted = [line["step"] for line in self.log], [line["step"] for line in whole.log]
        require(steps == wanted, f"the log has the steps {_short(steps)}, not each of {len(wanted)} once")
        for mine, theirs in zip(self.log, whole.log, strict=True):
            loss, unbroken = mine["loss"], theirs["loss"]  # null where it is not finite
            is_same = loss is not None and abs(loss - unbroken) <= rel * abs(unbroken)
            require(is_same, f"step {mine['step']}: the loss is {loss!r}, unbroken it is {unbroken!r}")
        names = {line["done"]: line["names"] for line in whole.done()}
        for line in self.done():
            is_same = line["names"] == names[line["done"]]
            require(is_same, f"step {line['done']} saw {_short(line['names'])}, unbroken {_short(names[line['done']])}")
        again = len(self.done()) - len(names)
        require(0 <= again <= allowed, f"{again} steps were taken again, {allowed} are allowed")
        return again


class Bench:
    """A folder for runs, the data, and the two shared runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.off: tuple[Injection, ...] = ()
        self.running: list[Attempt] = []
        self._names: Iterator[int] = iter(range(1 << 30))
        self._whole: dict[tuple[int, int], Run] = {}

    @cached_property
    def data(self) -> Path:
        documents = [document for document in random_documents(300) if document.length >= 8]
        return write_dataset(self.folder / "data", documents)

    def recipe(self, folder: Path, **changes: Any) -> RunConfig:
        named: dict[str, Any] = {
            "name": "drill", "data.asr.weight": 1.0, "data.asr.train": [str(self.data)], "data.asr.long": "split",
            "data.window": 64, "model.num_layers": 2, "train.steps": STEPS, "train.sequence_length": 64,
            "train.global_batch_size": 4, "train.micro_batch_size": 2, "train.learning_rate": 5e-3,
            "checkpoint.folder": str(folder), "checkpoint.every": EVERY, "checkpoint.keep": 0,
            "telemetry.tensorboard": False,
        }  # fmt: skip
        named |= {name.replace("__", "."): value for name, value in changes.items()}
        return replace(load_recipe("most-tiny"), named)

    def new(self, **changes: Any) -> Run:
        folder = self.folder / f"run-{next(self._names)}"
        return Run(self, folder, self.recipe(folder, **changes))

    def whole(self, world: int = 2, steps: int = STEPS) -> Run:
        """The unbroken run."""
        if (world, steps) not in self._whole:
            with self.protected():
                run = self.new(train__steps=steps)
                ended = run.go(world)
            injected(ended.codes == [0] * world, f"the unbroken run fails: {ended.last_lines()}")
            losses = [line["loss"] for line in run.log]
            injected(len(set(losses)) == steps, f"nothing moves in the unbroken run: {losses}")
            self._whole[world, steps] = run
        return self._whole[world, steps]

    @cached_property
    def _stopped(self) -> Run:
        def stop(child: Child) -> None:
            child.on("stepped", STOPPED - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))

        with self.protected():
            run = self.new()
            ended = run.go(2, stop)
        found = sorted(path.name for path in run.checkpoints.glob("step-*"))
        injected(ended.codes == [EXIT_STOPPED] * 2, f"the run to be harmed fails: {ended.last_lines()}")
        injected(found == [f"step-{step:08d}" for step in (EVERY, STOPPED)], f"it left {found}")
        return run

    def stopped(self) -> Run:
        """A copy of a run that was stopped after step STOPPED, where it had saved for the second time."""
        run = self.new()
        shutil.copytree(self._stopped.folder, run.folder)
        shutil.copytree(notes(self._stopped.folder, 0), notes(run.folder, 0))
        run.attempts = 1
        return run

    @contextmanager
    def protected(self) -> Iterator[None]:
        """What the drills share is made with every protection on."""
        off, self.off = self.off, ()
        try:
            yield
        finally:
            self.off = off

    def clean_up(self) -> None:
        """No drill leaves a process behind, however it ended."""
        for attempt in self.running:
            attempt.kill()
        self.running.clear()


def only(rank: int, act: Injection) -> Injection:
    """An injection that happens to one rank."""

    def inject(child: Child) -> None:
        if child.rank == rank:
            act(child)

    return inject


def state_of(pid: int) -> str:
    """The kernel's letter for a process: R, S, T (stopped), Z; "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of JSON; a torn last one is left out."""
    text = _text(path)
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 120 else text[:117] + "..."
