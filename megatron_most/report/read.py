"""From a run's folder to arrays: what metrics.jsonl says, but for a line that is torn or just being written.

train/history.py says what the lines are. One that says what no run says (numbers that are words, a step before the last
one) is passed over like one that cannot be read, and told of in the same warning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_most.errors import DataError
from megatron_most.report.table import Experts, Looks, Numbers, Series, Table
from megatron_most.runtime import json_lines, open_file, progress

FILE, RECIPE = "metrics.jsonl", "resolved.toml"
Line = dict[str, Any]
_LATEST = 1e11  # a time of day that still has a date
_LONG = 64 << 20  # bytes of a file that takes a while


@dataclass(frozen=True)
class Attempt:
    """One start of the run."""

    line: Line
    """As it began."""
    last: Line
    """Its last line that counts; that it began, where later attempts took all its steps again."""
    is_ended: bool
    """It said that it ended; a killed one does not, and one that runs has not yet."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run's folder, read."""

    name: str
    folder: Path
    recipe: str
    """resolved.toml; nothing where it is not there."""
    series: dict[str, Series]
    """By name, in the order in which names came up."""
    validations: dict[str, dict[str, Series]]
    """Set -> name -> over the numbers of steps before it."""
    experts: Experts | None
    attempts: tuple[Attempt, ...]
    last: Line
    """Of the last step."""

    def values(self, name: str) -> Numbers:
        return self.series[name].values if name in self.series else np.zeros(0)


def read_run(folder: Path, name: str = "") -> Run:
    """Read what is there now; the run may be going on. DataError where that is no run, or none with a step."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of a run (checkpoint.folder)")
    if not (folder / FILE).exists():
        raise DataError(f"{folder}: not a run, it holds no {FILE}; give the folder of a run (checkpoint.folder)")
    found = _Found()
    path = folder / FILE
    with open_file(path) as file:
        lines = file if path.stat().st_size < _LONG else _shown(file, path)
        for _ in json_lines(lines, path, found.take):
            pass
    if not found.last:
        raise DataError(f"{path}: no step in it yet; wait for the first one")
    recipe = folder / RECIPE
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        series=found.steps.series(),
        validations={task: kept.series() for task, kept in found.validations.items()},
        experts=found.looks.experts(),
        attempts=tuple(Attempt(line, end, is_ended) for line, end, is_ended in found.begun),
        last=found.last,
    )


class _Found:
    """What the lines say, one after the other."""

    def __init__(self) -> None:
        self.steps, self.looks = Table(), Looks()
        self.validations: dict[str, Table] = defaultdict(Table)
        self.begun: list[tuple[Line, Line, bool]] = []
        self.last: Line = {}

    def take(self, line: Line) -> bool:
        """Whether it is a line of a run; nothing of another is kept."""
        try:
            self._take(line)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            return False
        return True

    def _take(self, line: Line) -> None:
        step = line["step"]
        if type(step) is not int or not 0 <= step < 1 << 53:
            raise ValueError("not a step")
        is_attempt = "attempt" in line
        if is_attempt or self.begun:
            _require_numbers(line, "at", most=_LATEST)
        if is_attempt:
            _require_attempt(line)
            self.begun.append((line, line, False))
            return
        if "validation" in line:
            if not isinstance(line["validation"], str):
                raise ValueError("not the name of a set")
            self.validations[line["validation"]].add(step, line)
        elif "seconds" in line:
            self._take_step(step, line)
        if self.begun:
            times = line.get("times", {})
            _require_numbers(times, *times)
            self.begun[-1] = (self.begun[-1][0], line, "ended" in line)

    def _take_step(self, step: int, line: Line) -> None:
        if self.last and step <= self.last["step"]:
            raise ValueError("a step that was told before")
        times = line.get("times", {})
        _require_numbers(times, *times)
        _require_numbers(line, *(name for name in ("seconds", "effective") if name in line))
        if not isinstance(line.get("loss"), float | int | None):
            raise ValueError("not a loss")
        if "experts" in line:
            self.looks.add(step, line["experts"])
        self.steps.add(step, line)
        self.last = line


def _require_numbers(line: Line, *names: str, most: float = 1e100) -> None:
    for name in names:
        if not 0 <= line[name] < most:  # a TypeError for a word
            raise ValueError(f"{name} is {line[name]}")


def _require_attempt(line: Line) -> None:
    """All that the page says of an attempt is there."""
    _require_numbers(line, "attempt", "at", "ready", most=_LATEST)
    for name in ("ranks", "device", "layout"):
        line[name]
    size, steps = line.get("parameters", {}), line.get("steps", 0)
    _require_numbers(size, *(("total", "active") if size else ()))
    if type(steps) is not int or not isinstance(line.get("versions", {}), dict):
        raise ValueError("not an attempt")


def _shown(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Its lines, with what tells how many there have been."""
    return progress(file, f"read {path}", "lines")
