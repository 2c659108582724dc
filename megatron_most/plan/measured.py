"""What a recipe really reached on 1, 2, 4, ... nodes, beside what is predicted of the same layout on the same GPUs.

    tools/plan.py --measured runs/scaling/nodes-1 runs/scaling/nodes-2 --report runs/scaling/report.md

Read from each run's metrics.jsonl: medians over steps, the first ones after each start left out. Runs are refused that
differ in more than the nodes: one table of unlike things would show anything.
"""

from __future__ import annotations

import io
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.config import RunConfig, dump, load_recipe, replace
from megatron_most.errors import DataError
from megatron_most.plan.machine import Assumed, Machine
from megatron_most.plan.prediction import Cluster, Prediction
from megatron_most.plan.ranking import facts_for, for_planning, layout_name, predict_recipe
from megatron_most.runtime import json_lines, open_file, write_atomically
from megatron_most.upstream import core_version

METRICS, RECIPE = "metrics.jsonl", "resolved.toml"
FEWEST = 5
_OWN = ("checkpoint.folder", "name")  # what two runs of one measurement may differ in
_HEAD = (
    "| nodes | GPUs | layout | steps | step, s | predicted | tokens/s a GPU | predicted | efficiency | predicted |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run, as it was."""

    folder: Path
    config: RunConfig
    nodes: int
    ranks: int
    device: str
    versions: dict[str, str]
    steps: int
    """That were counted."""
    seconds: float
    """Of a step, without saving and validating; the median."""
    tokens_per_second: float
    """Of one GPU, pads left out; the median."""

    @property
    def gpus(self) -> int:
        """Of a node."""
        return self.ranks // self.nodes


@dataclass(frozen=True)
class Pair:
    """A run and what was predicted of it."""

    measured: Measured
    predicted: Prediction


def read_measured(folder: Path, leave_out: int) -> Measured:
    """`leave_out`: steps after each start, in which caches fill and memory grows."""
    path = folder / METRICS
    starts: list[dict[str, Any]] = []
    counted: list[tuple[float, float]] = []
    since = 0
    with open_file(path, remedy="give folders of runs") as file:
        for _, line in json_lines(file, path):
            if "ranks" in line and "attempt" in line:
                starts.append(line)
                since = 0
            elif "tokens_per_second" in line:
                since += 1
                if since > leave_out:
                    counted.append((float(line["tokens"]), float(line["tokens_per_second"])))
    facts = {(start["ranks"], start.get("nodes"), start["device"]) for start in starts}
    if len(facts) != 1 or None in next(iter(facts)):
        found = "; ".join(
            f"{ranks} ranks on {nodes} nodes, {device}" for ranks, nodes, device in sorted(facts, key=str)
        )
        raise DataError(f"{path}: its starts are not alike or do not say on how many nodes they were ({found}); "
                        "measure again in a new folder")  # fmt: skip
    if len(counted) < FEWEST:
        raise DataError(
            f"{path}: {len(counted)} steps after the first {leave_out} of a start, {FEWEST} are wanted; train for more"
        )
    if any(speed <= 0 for _, speed in counted):
        raise DataError(f"{path}: a step without tokens per second; it is damaged, measure again in a new folder")
    start = starts[-1]
    return Measured(
        folder=folder,
        config=load_recipe(str(folder / RECIPE)),
        nodes=start["nodes"],
        ranks=start["ranks"],
        device=start["device"],
        versions=start["versions"],
        steps=len(counted),
        seconds=statistics.median(tokens / speed for tokens, speed in counted),
        tokens_per_second=statistics.median(speed for _, speed in counted) / start["ranks"],
    )


def require_alike(runs: Sequence[Measured]) -> None:
    """Of the same recipe on the same GPUs, and each of another number of nodes."""
    first, recipe = runs[0], _fields(runs[0].config)
    for other in runs[1:]:
        own = _fields(other.config)
        wrong = [name for name in sorted({*recipe, *own}) if recipe.get(name) != own.get(name)]
        said = [f"{name} is {own.get(name)}, not {recipe.get(name)}" for name in wrong]
        if other.device != first.device:
            said.append(f"it ran on {other.device}, not {first.device}")
        if other.gpus != first.gpus:
            said.append(f"it has {other.gpus} ranks a node, not {first.gpus}")
        if other.versions != first.versions:
            said.append(f"it ran with {other.versions}, not {first.versions}")
        if said:
            raise DataError(f"{other.folder} cannot be compared with {first.folder}: {'; '.join(said[:4])}; "
                            "measure runs that differ in nodes alone")  # fmt: skip
    for one, next_one in zip(runs, runs[1:], strict=False):
        if one.nodes == next_one.nodes:
            raise DataError(f"{one.folder} and {next_one.folder} are both of {one.nodes} nodes; leave one out")


def _fields(config: RunConfig) -> dict[str, Any]:
    """Dotted names and values, without those that are a run's own."""
    found: dict[str, Any] = {}

    def walk(table: dict[str, Any], at: str) -> None:
        for name, value in table.items():
            if isinstance(value, dict):
                walk(value, f"{at}{name}.")
            elif f"{at}{name}" not in _OWN:
                found[f"{at}{name}"] = value

    walk(tomllib.loads(dump(config)), "")
    return found


def compare(folders: Sequence[Path], machine: Machine, assumed: Assumed, leave_out: int) -> list[Pair]:
    """Runs and predictions, the fewest nodes first."""
    runs = sorted((read_measured(folder, leave_out) for folder in folders), key=lambda run: run.nodes)
    require_alike(runs)
    pairs = []
    for run in runs:
        cluster = Cluster(nodes=run.nodes, gpus=run.gpus, machine=machine)
        config = replace(for_planning(run.config), {"device": "gpu"})
        pairs.append(Pair(run, predict_recipe(config, facts_for(cluster, core_version()), cluster, assumed)))
    return pairs


def efficiencies(pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    """(measured, predicted) tokens a second and GPU beside the fewest nodes."""
    first = pairs[0]
    return [
        (
            pair.measured.tokens_per_second / first.measured.tokens_per_second,
            pair.predicted.tokens_per_second / first.predicted.tokens_per_second,
        )
        for pair in pairs
    ]


def table(pairs: Sequence[Pair]) -> list[str]:
    lines = list(_HEAD)
    for pair, (found, said) in zip(pairs, efficiencies(pairs), strict=True):
        run, told = pair.measured, pair.predicted
        cells = (
            str(run.nodes), str(run.ranks), layout_name(run.config.layout), str(run.steps), f"{run.seconds:.3g}",
            f"{told.step.total:.3g}", f"{run.tokens_per_second:,.0f}", f"{told.tokens_per_second:,.0f}", f"{found:.0%}",
            f"{said:.0%}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def describe_measured(pairs: Sequence[Pair], leave_out: int) -> list[str]:
    """What the table is of."""
    run, told = pairs[0].measured, pairs[0].predicted
    train = run.config.train
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))
    return [
        f"{run.config.name}: {train.global_batch_size} {train.batch_counts} a step on every number of nodes, "
        f"measured on {run.device} ({versions}), predicted for {told.cluster.machine.name}.",
        f"Medians over steps without saving and validating, the first {leave_out} of each start left out; "
        f"efficiency is tokens a second and GPU beside {run.nodes} node{'s' * (run.nodes > 1)}.",
    ]


def write_report(pairs: Sequence[Pair], page: Path, leave_out: int) -> None:
    """The page, and its plot beside it."""
    picture = page.with_suffix(".svg")
    head = [f"# {pairs[0].measured.config.name} on more nodes: measured and predicted", ""]
    body = [*describe_measured(pairs, leave_out), "", *table(pairs), "", f"![efficiency over nodes]({picture.name})"]
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(picture, draw(pairs))
    write_atomically(page, "\n".join([*head, *body]) + "\n")


def draw(pairs: Sequence[Pair]) -> str:
    """Efficiency over nodes, twice. Equal inputs give equal bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "measured", "svg.fonttype": "none", "font.size": 9})
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        ax: Any = figure.subplots()
        nodes = [pair.measured.nodes for pair in pairs]
        for at, (name, style) in enumerate((("measured", "-"), ("predicted", ":"))):
            ax.plot(nodes, [one[at] for one in efficiencies(pairs)], style, marker="o", ms=3, label=name)
        ax.set_xscale("log", base=2)
        ax.set_xticks(nodes, [str(node) for node in nodes])
        ax.set_xlabel("nodes")
        ax.set_ylim(0, None)
        ax.set_title("tokens a second and GPU, beside the fewest nodes", fontsize=9, loc="left")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return file.getvalue()
