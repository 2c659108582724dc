"""Numbers of many lines, kept as they come: a block of float64 for all lines that name the same things.

A run has hundreds of thousands of lines with fifty numbers each, and nearly all of them have the same names. Numbers
inside objects get the names of both: times -> data is "times/data".
"""

from __future__ import annotations

import functools
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
EXPERTS = ("load", "dead", "mass", "entropy")
MOST = 1e100
"""No number of a run is larger; a sum of such ones is still a number."""
_APART = ("step", "position", "experts")
_NAN = float("nan")
_NUMBERS = {float, int, bool, type(None)}


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


class Table:
    """Lines of one kind, in their order."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, ...], tuple[array[float], array[float]]] = {}

    def add(self, step: int, named: dict[str, Any]) -> None:
        """ValueError for numbers that no run has; what is no number is left out, and null is a gap."""
        names, values = _numbers(named)
        numbers = array("d", _bounded(values))
        steps, kept = self._blocks.setdefault(names, (array("d"), array("d")))
        kept.extend(numbers)
        steps.append(step)

    def series(self) -> dict[str, Series]:
        """By name, in the order in which names came up; those that never had a number are left out."""
        parts: dict[str, list[tuple[Numbers, Numbers]]] = {}
        for names, (steps, kept) in self._blocks.items():
            whole = np.frombuffer(kept).reshape(len(steps), len(names)) if names else np.zeros((len(steps), 0))
            for at, name in enumerate(names):
                parts.setdefault(name, []).append((np.array(steps), whole[:, at].copy()))
        made = {name: _joined(several) for name, several in parts.items()}
        return {name: one for name, one in made.items() if np.isfinite(one.values).any()}


class Looks:
    """Looks at the experts. Those at other layers or groups than the last one, as no one run has, are left out."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[tuple[int, ...], tuple[str, ...]], tuple[array[float], array[float]]] = {}
        self._last: tuple[tuple[int, ...], tuple[str, ...]] | None = None

    def add(self, step: int, look: dict[str, Any]) -> None:
        """ValueError, TypeError or KeyError where it is no look."""
        layers, groups = tuple(look["layers"]), tuple(look["groups"])
        rows = [row for kind in EXPERTS for row in look[kind]]
        values = [value for row in rows for value in row]
        if any(len(look[kind]) != len(layers) for kind in EXPERTS) or any(len(row) != len(groups) for row in rows):
            raise ValueError("not a row for each layer, or not a column for each group")
        if not layers or not groups or not {type(x) for x in layers} <= {int} or not {type(x) for x in groups} <= {str}:
            raise ValueError("layers have numbers and groups names")
        numbers = array("d", _bounded(values))
        steps, kept = self._blocks.setdefault((layers, groups), (array("d"), array("d")))
        steps.append(step)
        kept.extend(numbers)
        self._last = layers, groups

    def experts(self) -> Experts | None:
        if self._last is None:
            return None
        (layers, groups), (steps, kept) = self._last, self._blocks[self._last]
        whole = np.frombuffer(kept).reshape(len(steps), len(EXPERTS), len(layers), len(groups))
        tables = {
            (kind, group): whole[:, k, :, g].copy() for k, kind in enumerate(EXPERTS) for g, group in enumerate(groups)
        }
        return Experts(np.array(steps), list(layers), list(groups), tables)


def _bounded(values: list[Any]) -> list[float]:
    """With NaN for null. ValueError where one is too large, TypeError where one is no number."""
    there = [value for value in values if value is not None] if None in values else values
    if there and not -MOST < min(there) <= max(there) < MOST:
        raise ValueError("too large for a number of a run")
    return there if len(there) == len(values) else [_NAN if value is None else value for value in values]


def _numbers(named: dict[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
    names, values = [], []
    for key, value in named.items():
        if key in _APART:
            continue
        kind = type(value)
        if kind in _NUMBERS:
            names.append(key)
            values.append(value)
        elif kind is dict:
            inner, more = _numbers(value)
            names += _below(key, inner)
            values += more
    return tuple(names), values


@functools.lru_cache
def _below(key: str, names: tuple[str, ...]) -> list[str]:
    return [f"{key}/{name}" for name in names]


def _joined(parts: list[tuple[Numbers, Numbers]]) -> Series:
    if len(parts) == 1:
        return Series(*parts[0])
    steps, values = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    order = np.argsort(steps, kind="stable")
    return Series(steps[order], values[order])
