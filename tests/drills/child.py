"""One rank of a run under drill: the real run_training in a forked process that keeps a diary and can be harmed.

Nothing of this is known to the package: public classes are wrapped from outside, here, in the child alone. Each step
leaves a line with its documents and its loss, written before the next thing happens, so that a kill cannot take it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_most.config import RunConfig
from megatron_most.data.reader import Steps
from megatron_most.engine import PlainEngine, ZeroEngine
from megatron_most.model import MostModel
from megatron_most.runtime import Launch, run_command, watch
from megatron_most.train import run_training

WAIT_S = 60.0


class Child:
    """What an injection is given to work with."""

    def __init__(self, launch: Launch, run: Path, attempt: int) -> None:
        self.launch, self.rank, self.run = launch, launch.rank, run
        self.step = -1  # of this attempt, counted from 0, while its data are asked for and afterwards
        self._names: list[list[str]] = []
        self._acts: dict[tuple[str, int], list[Callable[[], None]]] = {}
        self._every: dict[str, list[Callable[[], None]]] = {}
        self._trace = os.open(notes(run, attempt) / f"trace-{self.rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._proof = os.open(notes(run, attempt) / "proof", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on(self, event: str, step: int | None, act: Callable[[], None]) -> None:
        """Call `act` before this step of the attempt asks for its data ("data"), is taken ("step") or runs a batch
        through the model ("forward"), or after it was taken ("stepped"). None: on every step.
        """
        if step is None:
            self._every.setdefault(event, []).append(act)
        else:
            self._acts.setdefault((event, step), []).append(act)

    def prove(self, text: str) -> None:
        """Write down that the harm is done."""
        os.write(self._proof, (text + "\n").encode())

    def wait_for(self, path: Path) -> None:
        """Until another process has made it."""
        until = time.monotonic() + WAIT_S
        while not path.exists():
            assert time.monotonic() < until, f"{path} never came"
            time.sleep(0.005)

    def _happens(self, event: str) -> None:
        for act in self._acts.pop((event, self.step), []) + self._every.get(event, []):
            act()

    def _note(self, **line: Any) -> None:
        os.write(self._trace, (json.dumps(line) + "\n").encode())

    def listen(self) -> None:
        """Wrap what a step goes through."""
        following, forward = Steps.__next__, MostModel.forward

        def next_step(steps: Steps) -> Any:
            self.step += 1
            self._happens("data")
            found = following(steps)
            self._names = steps._reader.names(found.rows)
            return found

        def run_model(model: MostModel, *given: Any, **named: Any) -> Any:
            self._happens("forward")
            return forward(model, *given, **named)

        def wrapped(taken: Callable[..., Any]) -> Callable[..., Any]:
            def step(engine: Any, *given: Any, **named: Any) -> Any:
                self._happens("step")
                number = engine.updates
                self._note(begun=number, names=self._names)
                report = taken(engine, *given, **named)
                self._note(done=number, names=self._names, loss=report.loss)
                self._happens("stepped")
                return report

            return step

        Steps.__next__ = next_step  # type: ignore[method-assign]
        MostModel.forward = run_model  # type: ignore[method-assign]
        for kind in (PlainEngine, ZeroEngine):
            kind.step = wrapped(kind.step)  # type: ignore[method-assign]


Injection = Callable[[Child], None]


def be_rank(launch: Launch, config: RunConfig, run: Path, attempt: int, injections: Sequence[Injection]) -> None:
    """The life of one forked process, as `tools/train.py` would live it; it never returns."""
    import torch

    torch.set_num_threads(1)  # before any torch work: the parent's thread pool did not survive the fork
    # Nothing here cuts the power, and a killed process loses nothing that it has written.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    watch.POLL_S, watch.GRACE_S, watch.READ_S = 0.2, 0.5, 1.0
    said = open(notes(run, attempt) / f"stderr-{launch.rank}", "w", buffering=1)
    os.dup2(said.fileno(), 2)
    sys.stderr = said  # pytest has put an object of its own there
    code = 1
    try:
        child = Child(launch, run, attempt)
        child.listen()
        for injection in injections:
            injection(child)
        sys.argv = ["tools/train.py"]
        run_command(lambda: run_training(config, launch))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    said.flush()
    os._exit(code)


def notes(run: Path, attempt: int) -> Path:
    """Where an attempt's lines are kept, out of the way of the run's own files."""
    return run.with_name(f"{run.name}.notes") / str(attempt)


def replace_everywhere(old: object, new: object) -> None:
    """Put `new` wherever a module of the package holds `old` under some name."""
    assert old is not new
    places = [
        (module, name)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("megatron_most")
        for name, value in list(vars(module).items())
        if value is old
    ]
    assert places, f"{old} is nowhere: it was renamed, and the drill with it must be"
    for module, name in places:
        setattr(module, name, new)
