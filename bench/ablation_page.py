"""The results of ablation.py as a table and as bars: means over seeds, and from the least to the largest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TASKS = {"asr": "speech to text", "tts": "text to speech", "text-lm": "text"}
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run: nats a token on documents never trained on, by task."""

    name: str
    seed: int
    total: int
    active: int
    losses: dict[str, float]


def table(results: Sequence[Result]) -> str:
    """A row a variant; each difference is to the first one's run of the same seed."""
    names = list(dict.fromkeys(result.name for result in results))
    first = names[0]
    head = ["variant", "parameters", "active", *TASKS.values(), *(f"{words}, less {first}" for words in TASKS.values())]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name in names:
        mine = [result for result in results if result.name == name]
        cells = [name, f"{mine[0].total:,}", f"{mine[0].active:,}"]
        cells += [_spread([result.losses[task] for result in mine], ".3f") for task in TASKS]
        for task in TASKS:
            apart = [result.losses[task] - other.losses[task] for result in mine for other in results
                     if (other.name, other.seed) == (first, result.seed)]  # fmt: skip
            cells.append(_spread(apart, "+.3f") if name != first else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], form: str) -> str:
    mean = format(statistics.fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def fill(page: str, results: Sequence[Result]) -> str:
    """The page with its table and its bars replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    measured = f"{table(results)}\n![losses by task and variant](ablation.svg)\n" if results else "Not yet.\n"
    return f"{before}{BEGIN}{measured}{END}{after}"


def draw(results: Sequence[Result], path: Path) -> None:
    """A panel a task, a bar a variant: the mean, and a line from the least to the largest."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "ablation", "svg.fonttype": "none", "font.size": 9})
    names = list(dict.fromkeys(result.name for result in results))
    grey = "#808080"  # legible on a light page and on a dark one
    figure = Figure(figsize=(9, 0.9 + 0.26 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharey=True, squeeze=False)[0]
    for panel, (task, words) in zip(panels, TASKS.items(), strict=True):
        for place, name in enumerate(names):
            found = [result.losses[task] for result in results if result.name == name]
            panel.barh(place, statistics.fmean(found), 0.7, color="#d8741f" if place == 0 else "#3b82c4")
            panel.plot([min(found), max(found)], [place, place], color=grey, linewidth=1.5)
        panel.set_yticks(range(len(names)), names, color=grey)
        panel.set_title(words, fontsize=9, color=grey)
        panel.set_xlabel("nats a token", color=grey)
        panel.tick_params(colors=grey)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(grey)
    panels[0].invert_yaxis()
    figure.savefig(path, transparent=True, metadata={"Date": None})
