"""The tables and the plot of docs/scaling.md: phase 1 of most-16b from 1 node to 512, predicted.

Twice: with the batch of the paper, which many GPUs cannot fill, and with a batch that grows with the nodes while the
tokens of the whole phase stay the same.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_most.config import ExpertLoad, Facts, RunConfig, load_recipe
from megatron_most.errors import DataError
from megatron_most.plan.loads import MIXES, WAYS, costs
from megatron_most.plan.machine import GIB, MACHINES, Assumed
from megatron_most.plan.prediction import Cluster, Prediction, cost_of
from megatron_most.plan.ranking import facts_for, for_planning, layout_name, search
from megatron_most.plan.weights import tensors_of
from megatron_most.runtime import write_atomically
from megatron_most.upstream import core_version

RECIPE, GPUS, MACHINE = "stage1-asr-tts", 8, "a100-80"
NODES = (1, 2, 4, 6, 8, 16, 32, 64, 128, 256, 512)
PAPER_NODES = 6
LOADS = "expert_load.json"  # beside the page
PLACED = ((6, "a100-80"), (16, "h100-80"), (64, "h100-80"))
BEGIN, END = "<!-- {name}: made by tools/plan.py --page -->", "<!-- end of {name} -->"
_HEAD = (
    "| nodes | GPUs | documents a step | layout | ZeRO | rows at once | again | GiB | step, s | tokens/s a GPU | "
    "efficiency | GPU-hours | days |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


def runs(nodes: int) -> dict[str, RunConfig]:
    """What is predicted for so many nodes, by the table's name."""
    config = for_planning(load_recipe(RECIPE))
    train = config.train
    batch = round(train.global_batch_size * nodes / PAPER_NODES)
    steps = round(train.steps * train.global_batch_size / batch)
    grown = replace(config, train=replace(train, global_batch_size=batch, steps=steps))
    return {"same batch": config, "grown batch": grown}


def best(config: RunConfig, nodes: int, assumed: Assumed, machine: str = MACHINE) -> Prediction:
    """The fastest layout that fits."""
    cluster = Cluster(nodes=nodes, gpus=GPUS, machine=MACHINES[machine])
    facts: Facts = facts_for(cluster, core_version())
    ranked = search(config, facts, cluster, assumed).ranked
    if not ranked:
        raise DataError(f"{RECIPE} fits {nodes} nodes of {GPUS} {machine} in no layout; the page has no row for that")
    return ranked[0]


def row(one: Prediction, alone: float, assumed: Assumed) -> str:
    """A line of a table; `alone`: tokens a second and GPU on one node."""
    config, cost = one.plan.config, cost_of(one, tensors_of(one.plan), assumed)
    again = {"none": "-", "full": "all"}.get(config.recompute.granularity, ", ".join(config.recompute.modules))
    cells = (
        f"{one.cluster.nodes:,}", f"{one.cluster.world:,}", f"{config.train.global_batch_size:,}",
        layout_name(config.layout), str(config.engine.zero_stage), str(config.train.micro_batch_size),
        again + (", offloaded" if config.engine.offload_optimizer else ""), f"{one.memory.total / GIB:.0f}",
        f"{one.step.total:.2f}", f"{one.tokens_per_second:,.0f}", f"{one.tokens_per_second / alone:.0%}",
        f"{cost.gpu_hours:,.0f}", f"{cost.days:,.1f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def tables(nodes: Iterable[int], assumed: Assumed) -> tuple[dict[str, list[str]], dict[str, list[Prediction]]]:
    """(lines, predictions) by the table's name; the first of `nodes` is what the others are compared with."""
    lines: dict[str, list[str]] = {}
    found: dict[str, list[Prediction]] = {}
    for count in nodes:
        for name, config in runs(count).items():
            found.setdefault(name, []).append(best(config, count, assumed))
            lines.setdefault(name, []).append(row(found[name][-1], found[name][0].tokens_per_second, assumed))
    return lines, found


def placed(load: ExpertLoad, assumed: Assumed) -> list[str]:
    """What each placement costs under measured loads: the table of three clusters, with the batch that grows."""
    lines = [
        "| nodes | layout | % text | busiest: blocked | striped | dealt | step, s: blocked | striped | dealt |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for nodes, machine in PLACED:
        one = best(runs(nodes)["grown batch"], nodes, assumed, machine)
        found = {(cost.percent, cost.way): cost for cost in costs(one, load, assumed)}
        name = f"{nodes} x {GPUS} {machine}", layout_name(one.plan.config.layout)
        for percent in MIXES:
            ways = [found[percent, way] for way in WAYS]
            cells = [f"{cost.busiest.mean:.3f}" for cost in ways] + [f"{cost.seconds:.2f}" for cost in ways]
            lines.append(f"| {' | '.join((*name, str(percent), *cells))} |")
    return lines


def write_page(page: Path, assumed: Assumed) -> None:
    """Put the tables into the page, between their marks, and the plot beside it."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{page}: cannot be read: {error.strerror or error}; give the page with the marks") from error
    load = ExpertLoad.load(page.with_name(LOADS))
    marks = {name: (BEGIN.format(name=name), END.format(name=name)) for name in (*runs(PAPER_NODES), "placements")}
    for begin, end in marks.values():
        if begin not in text or end not in text.partition(begin)[2]:
            raise DataError(f"{page}: has no place for the table; write {begin} and {end} into it")
    lines, found = tables(NODES, assumed)
    made = {name: [*_HEAD, *rows] for name, rows in lines.items()} | {"placements": placed(load, assumed)}
    for name, (begin, end) in marks.items():
        before, _, rest = text.partition(begin)
        text = before + "\n".join((begin, "", *made[name], "", end)) + rest.partition(end)[2]
    write_atomically(page, text)
    write_atomically(page.with_suffix(".svg"), draw(found))


def draw(found: Mapping[str, Sequence[Prediction]]) -> str:
    """Tokens a second of all GPUs, and GPU-hours, over GPUs. Equal inputs give equal bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "scaling", "svg.fonttype": "none", "font.size": 9})
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes: Any = figure.subplots(1, 2)
        for name, ones in found.items():
            gpus = [one.cluster.world for one in ones]
            speed = [one.tokens_per_second * one.cluster.world / 1e6 for one in ones]
            axes[0].plot(gpus, speed, marker="o", ms=3, label=name)
            axes[1].plot(gpus, [one.tokens_per_second / ones[0].tokens_per_second for one in ones], marker="o", ms=3)
        first = next(iter(found.values()))
        ideal = [one.cluster.world * first[0].tokens_per_second / 1e6 for one in first]
        axes[0].plot([one.cluster.world for one in first], ideal, ls=":", c="grey", label="as on one node")
        axes[0].set_yscale("log")
        for ax, words in zip(axes, ("million tokens a second, predicted", "efficiency beside one node"), strict=True):
            ax.set_xscale("log", base=2)
            ax.set_xlabel("GPUs")
            ax.set_title(words, fontsize=9, loc="left")
            ax.grid(alpha=0.3)
            ax.spines[["top", "right"]].set_visible(False)
        axes[1].set_ylim(0, 1.1)
        axes[0].legend(frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return file.getvalue()
