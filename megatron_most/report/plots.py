"""The plots of a run's page. A plot is a title, words under it, a key of its colours, and the drawing.

A long run has more steps than a page has columns: steps are gathered into at most 400 bins, each drawn by its mean.
Curves that jump are drawn twice, as they are and smoothed over a twentieth of the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_most.data.stats import short
from megatron_most.report.table import Experts, Numbers, Series
from megatron_most.runtime.drawing import colour, make_panels, svg, ticks
from megatron_most.runtime.log import printable

PALETTE = tuple(f"s{n}" for n in range(1, 11))
"""Variables of the page's style."""
ALL = "all"
_BINS, _LOOKS, _SMOOTHED = 400, 96, 20
_HEIGHT = 1.5  # inches; the page scales them


@dataclass(frozen=True)
class Plot:
    """One card of the page."""

    title: str
    words: str
    key: list[tuple[str, str]]
    """(name, variable of the page's style) of each colour."""
    drawing: Any


@dataclass(frozen=True, eq=False)
class Curve:
    name: str
    colour: str
    series: Series


def curves_of(named: Sequence[tuple[str, Series]]) -> list[Curve]:
    """With a colour each, that of text for "all"; beyond ten they come again."""
    colours = itertools.cycle(PALETTE)
    return [Curve(name, "ink" if name == ALL else next(colours), series) for name, series in named]


def draw_curves(
    title: str, words: str, curves: Sequence[Curve], *, marks: Sequence[int] = (), is_log: bool = False,
    is_smoothed: bool = True, has_points: bool = False, form: Callable[[float], str] = lambda y: f"{y:g}",
) -> Plot:  # fmt: skip
    """Curves over steps; `marks`: steps before which the run was begun again."""
    figure, [axes] = make_panels(1, _HEIGHT, above=0.08, below=0.42)
    values = []
    for curve in curves:
        steps, mean = thin(curve.series)
        drawn = np.where(mean > 0, mean, np.nan) if is_log else mean
        values.append(drawn[np.isfinite(drawn)])
        smooth = smoothed(drawn) if is_smoothed and len(drawn) > _SMOOTHED else None
        style: dict[str, Any] = {"marker": "o", "ms": 3} if has_points or len(drawn) == 1 else {}
        faint: dict[str, Any] = {"alpha": 0.3, "lw": 0.8} if smooth is not None else {"lw": 1.3}
        axes.plot(steps, drawn, color=colour(curve.colour), **style, **faint)
        if smooth is not None:
            axes.plot(steps, smooth, color=colour(curve.colour), lw=1.4)
    every = np.concatenate(values) if values else np.zeros(0)
    is_log = is_log and len(every) > 0 and every.max() > 10 * every.min()  # else there may be no power of ten in it
    if is_log:
        axes.set_yscale("log")
    _frame(axes, marks, form, every, is_log)
    key = [(curve.name, curve.colour) for curve in curves]
    return Plot(title, words, key if len(key) > 1 else [], svg(figure, f"{title} {[name for name, _ in key]}"))


def draw_stack(
    title: str, words: str, curves: Sequence[Curve], steps: Numbers, *, marks: Sequence[int] = ()
) -> Plot:  # fmt: skip
    """Seconds over one another: they add up to what each of `steps` took."""
    figure, [axes] = make_panels(1, _HEIGHT, above=0.08, below=0.42)
    heights = np.zeros((len(curves), len(steps)))
    for at, curve in enumerate(curves):  # a step that does not tell a part had none of it
        heights[at, np.searchsorted(steps, curve.series.steps)] = curve.series.values
    thinned = [thin(Series(steps, row)) for row in heights]
    x, heights = thinned[0][0], np.array([mean for _, mean in thinned])
    if len(x) == 1:  # an area has a width
        x, heights = np.array([x[0], x[0] + 1]), np.repeat(heights, 2, axis=1)
    axes.stackplot(x, heights, colors=[colour(curve.colour) for curve in curves], lw=0)
    _frame(axes, marks, lambda y: f"{y:g}", np.append(heights.sum(0), 0.0), False)
    axes.set_ylim(bottom=0)
    return Plot(title, words, [(curve.name, curve.colour) for curve in curves], svg(figure, f"stack {title}"))


def draw_heat(
    title: str, words: str, experts: Experts, kind: str, group: str, variable: str, low: float, high: float
) -> Plot:
    """A row a layer, looks from left to right; the more colour, the nearer to `high`."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    table = experts.tables[kind, group]
    columns = np.array_split(np.arange(len(table)), min(len(table), _LOOKS))
    means = np.array([_mean(table[column]) for column in columns])
    starts = [experts.steps[column[0]] for column in columns]
    edges = np.array([*starts, max(experts.steps[-1] + 1, starts[-1] + 1)])
    rows = len(experts.layers)
    figure, [axes] = make_panels(1, min(0.14 * rows + 0.2, 4.0), above=0.08, below=0.42)
    strength = np.clip((means - low) / (high - low), 0, 1).round(2)
    boxes, colours = [], []
    for at, row in zip(*np.nonzero(np.isfinite(strength)), strict=True):
        left, right, top, bottom = edges[at], edges[at + 1], row - 0.5, row + 0.5
        boxes.append([(left, top), (right, top), (right, bottom), (left, bottom)])
        colours.append(to_rgba(colour(variable), float(strength[at, row])))
    axes.add_collection(PolyCollection(boxes, facecolors=colours, lw=0, antialiased=False))  # no seams between boxes
    axes.set(xlim=(edges[0], edges[-1]), ylim=(rows - 0.5, -0.5), xlabel="step", ylabel="layer")
    ticks(axes, lambda x: short(int(x)))
    axes.grid(False)
    shown = range(0, rows, -(-rows // 9))
    axes.set_yticks(list(shown), [str(experts.layers[row]) for row in shown])
    return Plot(title, words, [], svg(figure, f"heat {title}"))


def draw_bars(title: str, words: str, named: Mapping[str, Sequence[float]]) -> Plot:
    """A bar a name, of the mean, and a line from the least to the largest; the first one stands out."""
    figure, [axes] = make_panels(1, 0.24 * len(named) + 0.1, above=0.08, below=0.42, edge=1.75)
    for at, values in enumerate(named.values()):
        axes.barh(at, np.mean(values), 0.66, color=colour(PALETTE[at == 0]), lw=0)
        axes.plot([min(values), max(values)], [at, at], color=colour("ink"), lw=1.2)
    ticks(axes, lambda x: f"{x:g}")
    axes.grid(False)
    axes.set(ylim=(len(named) - 0.5, -0.5), xlabel="nats a token")
    axes.set_yticks(range(len(named)), [printable(name, 30) for name in named])
    return Plot(title, words, [], svg(figure, f"bars {title}"))


def thin(series: Series) -> tuple[Numbers, Numbers]:
    """(mean step, mean value) of at most so many bins; bins without a finite value are gaps."""
    bins = np.array_split(np.arange(len(series.steps)), min(len(series.steps), _BINS))
    return np.array([series.steps[one].mean() for one in bins]), np.array([_mean(series.values[one]) for one in bins])


def smoothed(values: Numbers) -> Numbers:
    """The mean over a twentieth of all, around each; what is not there does not count."""
    half = max(1, len(values) // (2 * _SMOOTHED))
    is_there = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(is_there, values, 0.0), is_there))
    at = np.arange(len(values))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    number = counts[last] - counts[first]
    return np.where(is_there & (number > 0), (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)


def _mean(values: Numbers) -> Any:
    """Over the first axis, of what is there."""
    is_there = np.isfinite(values)
    number = is_there.sum(0)
    return np.where(number > 0, np.where(is_there, values, 0.0).sum(0) / np.maximum(number, 1), np.nan)


def _frame(axes: Any, marks: Sequence[int], form: Callable[[float], str], values: Numbers, is_log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for step in marks:
        axes.axvline(step, color=colour("muted"), lw=0.8, dashes=(3, 2))
    axes.set_xlabel("step")
    ticks(axes, lambda x: short(int(x)) if x == int(x) else f"{x:g}")
    if is_log:
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_formatter(NullFormatter())
        form = lambda y: f"{y:.0e}" if y < 1e-3 or y >= 1e4 else f"{y:g}"  # noqa: E731
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: form(y)))
    if not is_log and len(values):  # a start far above the rest would press it flat
        low, high = float(values.min()), float(np.quantile(values, 0.995) if len(values) > 50 else values.max())
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(max(low - room, 0.0) if low >= 0 else low - room, high + room)
