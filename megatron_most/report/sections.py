"""Which plots a page of runs has. One run: its numbers of a kind share a plot. Several runs: they share a plot of each
number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from megatron_most.data.stats import percent, short
from megatron_most.report.beside import Bars, sample_errors
from megatron_most.report.plots import (
    ALL,
    PALETTE,
    Curve,
    Plot,
    curves_of,
    draw_bars,
    draw_curves,
    draw_heat,
    draw_stack,
)
from megatron_most.report.read import Run
from megatron_most.report.table import Experts, Series

Named = list[tuple[str, Series]]
_TIMES = {  # from the bottom up
    "forward_backward": "forward and backward",
    "optimizer": "gradient exchange and optimizer",
    "check": "check, and the slowest rank’s data",
    "data": "data",
    "telemetry": "telemetry",
    "validation": "validation",
    "checkpoint": "held up by saving",
    "other": "other",
}
_EVEN, _UNEVEN = 1.0, 3.0  # load max / mean: without colour, and all of it


def sections(runs: Sequence[Run], bars: Sequence[Bars] = ()) -> list[tuple[str, list[Plot]]]:
    """(heading, its plots), those that have any."""
    made = (("Losses", _losses), ("Learning", _learning), ("Experts", _experts), ("Speed and memory", _speed))
    of_runs = [(heading, plots) for heading, make in made if (plots := list(make(runs)))]
    return [*of_runs, *([("Ablation", list(map(_bars, bars)))] if bars else [])]


def _bars(bars: Bars) -> Plot:
    words = "Other runs, of as many active parameters and steps: held-out loss, mean over seeds, least to largest."
    return draw_bars(f"Ablation: {bars.task}", words, bars.losses)


def _losses(runs: Sequence[Run]) -> Iterator[Plot]:
    words = "Nats per trained token."
    yield from _family(runs, "Loss", words, lambda run: [*_one(run, "loss", ALL), *_under(run, "loss/")])
    yield from _family(runs, "Loss by task", words, lambda run: _under(run, "task/"))
    words = "Nats per trained token of held-out documents."
    held_out = {"is_smoothed": False, "has_points": True}
    yield from _family(runs, "Validation", words, lambda run: _validations(run, "loss"), **held_out)
    words = "Of the run’s sample answers, free-running and greedy: wrong words of all, before that many steps."
    yield from _family(runs, "Word errors", words, lambda run: sample_errors(run.folder), form=percent, **held_out)
    words = "Nats per token of the gate’s texts above what the phase, or the one before it, began with."
    yield from _family(runs, "Forgetting", words, lambda run: _validations(run, "rise"), **held_out)


def _learning(runs: Sequence[Run]) -> Iterator[Plot]:
    yield from _family(runs, "Learning rate", "", lambda run: _one(run, "learning_rate"), is_smoothed=False)
    words = "Before clipping; steps without a finite gradient are gaps."
    yield from _family(runs, "Gradient norm", words, lambda run: _one(run, "gradient_norm"), is_log=True)
    if len(runs) == 1:
        words = "The root of the sum of their squares is the whole."
        yield from _family(runs, "Gradient norm by part", words, lambda run: _under(run, "norms/"), is_log=True)


def _experts(runs: Sequence[Run]) -> Iterator[Plot]:
    for run in runs:
        if run.experts is None:
            continue
        of, marks = f" of {run.name}" if len(runs) > 1 else "", _marks(run)
        for at, group in enumerate(run.experts.groups):
            words = (
                f"The busiest expert’s load over the mean: no colour at {_EVEN:g} (even), full at {_UNEVEN:g} and more."
            )
            variable = PALETTE[at % len(PALETTE)]
            yield draw_heat(f"Load of {group} experts{of}", words, run.experts, "load", group, variable, _EVEN, _UNEVEN)
        words = "Experts that no token of their group chose since the last look, over all layers."
        dead = _over_layers(run.experts, "dead", np.nansum)
        yield draw_curves(f"Dead experts{of}", words, curves_of(dead), marks=marks, is_smoothed=False)
        words = "Share of the softmax over all experts that falls into the token’s own group: mean over layers."
        mass = _over_layers(run.experts, "mass", np.nanmean)
        yield draw_curves(f"In-group mass{of}", words, curves_of(mass), marks=marks, form=percent)
        words = "Of the choice inside the group: 100 % is undecided, 0 % certain; mean over layers."
        entropy = _over_layers(run.experts, "entropy", np.nanmean)
        yield draw_curves(f"Entropy{of}", words, curves_of(entropy), marks=marks, form=percent)


def _speed(runs: Sequence[Run]) -> Iterator[Plot]:
    for run in runs:
        times = [
            (words, run.series[f"times/{name}"]) for name, words in _TIMES.items() if f"times/{name}" in run.series
        ]
        if times:
            title = "Where the time goes" + (f" of {run.name}" if len(runs) > 1 else "")
            words = "Seconds from one step to the next. The exchange that runs while going backward counts there."
            yield draw_stack(title, words, curves_of(times), run.series["seconds"].steps, marks=_marks(run))
    words = "Over all devices; saving and validating apart."
    yield from _family(runs, "Tokens per second", words, lambda run: _one(run, "tokens_per_second"), form=_short)
    words = (
        "Share of the devices’ peak that the model’s own products make up; nothing that is computed twice or masked."
    )
    yield from _family(runs, "MFU", words, lambda run: _one(run, "mfu"), form=percent)
    words = "Time in steps that the weights have learnt from, of all time since the run first began."
    yield from _family(
        runs, "Effective time", words, lambda run: _one(run, "effective"), form=percent, is_smoothed=False
    )
    words = "Most so far, of the rank that needs most. GiB."
    yield from _family(runs, "Memory", words, lambda run: _under(run, "memory/"), form=_gib, is_smoothed=False)


def _family(runs: Sequence[Run], title: str, words: str, of: Callable[[Run], Named], **style: Any) -> Iterator[Plot]:
    """Numbers that belong together; one without a name is its family."""
    kept = [dict(of(run)) for run in runs]
    if len(runs) == 1:
        if kept[0]:
            yield draw_curves(title, words, curves_of(list(kept[0].items())), marks=_marks(runs[0]), **style)
        return
    for name in dict.fromkeys(name for named in kept for name in named):
        pairs = [
            (at, run.name, named[name]) for at, (run, named) in enumerate(zip(runs, kept, strict=True)) if name in named
        ]
        curves = [Curve(run, PALETTE[at % len(PALETTE)], series) for at, run, series in pairs]
        yield draw_curves(f"{title}: {name}" if name else title, words, curves, **style)


def _one(run: Run, name: str, shown: str = "") -> Named:
    return [(shown, run.series[name])] if name in run.series else []


def _under(run: Run, prefix: str) -> Named:
    return [(name[len(prefix) :], series) for name, series in run.series.items() if name.startswith(prefix)]


def _validations(run: Run, name: str) -> Named:
    return [(task, kept[name]) for task, kept in run.validations.items() if name in kept]


def _over_layers(experts: Experts, kind: str, how: Callable[..., Any]) -> Named:
    """A group a curve; where a group had no tokens in any layer is a gap."""
    named = []
    for group in experts.groups:
        table = experts.tables[kind, group]
        is_there = np.isfinite(table).any(1)
        values = np.full(len(table), np.nan)
        values[is_there] = how(table[is_there], axis=1)
        named.append((group, Series(experts.steps, values)))
    return named


def _marks(run: Run) -> list[int]:
    """The steps before which it was begun again."""
    return [attempt.line["step"] for attempt in run.attempts if attempt.line["step"]]


def _short(number: float) -> str:
    return short(int(number)) if number >= 100 else f"{number:g}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g}"
