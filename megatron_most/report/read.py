"""From a run's folder to arrays: what metrics.jsonl says, up to a line that a kill has torn or that is being written.

train/history.py says what the lines are. Numbers inside objects get the names of both: times -> data is "times/data".
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_most.errors import DataError
from megatron_most.runtime import json_lines, open_file

FILE, RECIPE = "metrics.jsonl", "resolved.toml"
Line = dict[str, Any]
Numbers = NDArray[np.float64]
EXPERTS = ("load", "dead", "mass", "entropy")


@dataclass(frozen=True, eq=False)
class Series:
    """One number over the steps that told it."""

    steps: Numbers
    values: Numbers


@dataclass(frozen=True, eq=False)
class Experts:
    """What looks at the experts saw, as [look, layer] for each kind and group; NaN where a group had no tokens."""

    steps: Numbers
    layers: list[int]
    groups: list[str]
    tables: dict[tuple[str, str], Numbers]


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
    series: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    validations: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    looks: list[tuple[int, Line]] = []
    begun: list[tuple[Line, Line, bool]] = []
    last: Line = {}
    with open_file(folder / FILE) as file:
        for _, line in json_lines(file, folder / FILE):
            step = line.get("step")
            if type(step) is not int:
                break
            if "attempt" in line:
                begun.append((line, line, False))
            elif begun:
                begun[-1] = (begun[-1][0], line, "ended" in line)
            if "validation" in line:
                kept: Any = validations.setdefault(line["validation"], defaultdict(lambda: ([], [])))
                _note(kept, step, {key: value for key, value in line.items() if key != "validation"})
            elif "seconds" in line:
                last = line
                _note(series, step, line)
                if "experts" in line:
                    looks.append((step, line["experts"]))
    if not last:
        raise DataError(f"{folder / FILE}: no step in it yet; wait for the first one")
    recipe = folder / RECIPE
    return Run(
        name=name or folder.resolve().name,
        folder=folder,
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        series=_arrays(series),
        validations={task: _arrays(kept) for task, kept in validations.items()},
        experts=_experts(looks) if looks else None,
        attempts=tuple(Attempt(line, end, is_ended) for line, end, is_ended in begun),
        last=last,
    )


def _note(series: dict[str, tuple[list[int], list[float]]], step: int, line: Line, at: str = "") -> None:
    """Keep every number of a line under its name; what was not finite is null there, and a gap here."""
    for key, value in line.items():
        if key in ("step", "position", "experts"):
            continue
        if isinstance(value, dict):
            _note(series, step, value, f"{at}{key}/")
        elif value is None or isinstance(value, bool | int | float):
            steps, values = series[f"{at}{key}"]
            steps.append(step)
            values.append(float("nan") if value is None else float(value))


def _arrays(series: dict[str, tuple[list[int], list[float]]]) -> dict[str, Series]:
    made = {name: Series(np.array(steps, float), np.array(values)) for name, (steps, values) in series.items()}
    return {name: one for name, one in made.items() if np.isfinite(one.values).any()}


def _experts(looks: list[tuple[int, Line]]) -> Experts:
    """Looks at other layers or groups than the last one, as no one run has, are left out."""
    layers, groups = looks[-1][1]["layers"], looks[-1][1]["groups"]
    alike = [(step, look) for step, look in looks if look["layers"] == layers and look["groups"] == groups]
    tables = {}
    for kind in EXPERTS:
        whole = np.array([look[kind] for _, look in alike], dtype=float)  # None becomes NaN
        for at, group in enumerate(groups):
            tables[kind, group] = whole[:, :, at]
    return Experts(np.array([step for step, _ in alike], float), layers, groups, tables)
