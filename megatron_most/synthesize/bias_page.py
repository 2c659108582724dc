"""The bias report as files: bias.json, and a page with a plot for each respect that loads nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.errors import DataError
from megatron_most.runtime import write_atomically
from megatron_most.runtime.drawing import colour, drawing, make_panels, svg, ticks
from megatron_most.runtime.page import write_page
from megatron_most.synthesize.bias import BiasReport
from megatron_most.synthesize.bias_measure import Finding

TEMPLATE = Path(__file__).with_name("pages") / "bias.html.jinja"
_MOST_BARS = 10


def write_bias(found: BiasReport, out: Path, page: Path | None) -> None:
    """Write the numbers, and the page where one is wanted; what is there is replaced."""
    if out.suffix != ".json" or out.is_dir():
        raise DataError(f"{out}: not a name for the numbers; give --out a file name that ends in .json")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(_without_long_lists(found), indent=1, ensure_ascii=False) + "\n")
    if page is None:
        return
    with drawing():
        write_page(
            page,
            TEMPLATE,
            title=f"{', '.join(found.synthetic)} against {', '.join(found.real)}",
            verdict=found.verdict(),
            tiles=_tiles(found),
            findings=[(one, _draw(one)) for one in found.findings],
            left_out=found.left_out,
        )


def _without_long_lists(found: BiasReport) -> dict[str, Any]:
    """All shares of ordered respects and of topics; of words and units what stands out: there are thousands."""
    values = found.to_dict()
    for one in values["findings"]:
        if len(one["labels"]) > 600:
            del one["labels"], one["synthetic"], one["real"]
    return {"verdict": found.verdict(), **values}


def _tiles(found: BiasReport) -> list[tuple[str, str]]:
    tiles = [
        (f"{found.num_items[0]:,}", "synthetic rows"),
        (f"{found.num_items[1]:,}", "real rows"),
        (f"{len(found.biased)} of {len(found.findings)}", "respects that differ"),
    ]
    if found.num_spoken[0]:
        tiles += [
            (f"{n:,}", f"{side} utterances as units")
            for n, side in zip(found.num_spoken, ("synthetic", "real"), strict=True)
        ]
    return tiles


def _draw(one: Finding) -> Any:
    """Ordered categories as two curves, others as pairs of bars: those that tell the sides apart most."""
    if one.is_ordered:
        figure, [axes] = make_panels(1, 1.3, above=0.08, below=0.42)
        last = max([i for i, pair in enumerate(zip(one.synthetic, one.real, strict=True)) if any(pair)] + [0]) + 1
        x = np.arange(last)
        for values, name in ((one.real, "s2"), (one.synthetic, "s1")):
            axes.step(x, values[:last], where="mid", color=colour(name), lw=1.6)
            axes.fill_between(x, values[:last], step="mid", color=colour(name), alpha=0.15, lw=0)
        step = max(1, -(-last // 6))
        axes.set_xticks(x[::step])
        labels = [label.removeprefix("speaker ").split(" ")[0] for label in one.labels]  # "2 turns", "4 to 5.66"
        ticks(axes, lambda at: labels[int(at)] if 0 <= int(at) < last else "", percent_ticks=True)
        axes.set_ylim(0, max(*one.synthetic, *one.real, 1e-9) * 1.08)
        axes.set_xlabel(one.about)
        return svg(figure, one.name)
    rows = sorted((*one.more[: _MOST_BARS // 2], *one.less[: _MOST_BARS // 2]), key=lambda row: row[2] - row[1])
    figure, [axes] = make_panels(1, 0.36 * max(len(rows), 1), edge=0.0, above=0.0, below=0.04)
    axes.set(xlim=(0, 1), ylim=(max(len(rows), 1), 0))
    axes.axis("off")
    most = max([max(row[1:]) for row in rows] + [1e-9])
    for y, (label, ours, theirs) in enumerate(rows):
        axes.text(0, y + 0.42, label[:34], color=colour("ink"))
        axes.text(1, y + 0.42, f"{ours:.2%} : {theirs:.2%}", color=colour("muted"), ha="right")
        axes.barh(y + 0.6, ours / most, 0.15, color=colour("s1"))
        axes.barh(y + 0.78, theirs / most, 0.15, color=colour("s2"))
    return svg(figure, one.name)
