"""What a placement of experts costs under measured loads: tokens of the busiest expert rank, and the step that makes.

The loads are a run's own (expert_load.json); the mix of text and other tokens is asked for, since loads are known for
each group by itself. Layers wait one after the other, so a step pays the mean over layers of the busiest rank's share;
memory has to hold the worst one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Literal

from megatron_most.config import ExpertLoad, place
from megatron_most.errors import ConfigError
from megatron_most.plan.machine import Assumed
from megatron_most.plan.prediction import Prediction
from megatron_most.plan.ranking import predict_recipe

Way = Literal["blocked", "striped", "dealt"]
WAYS: tuple[Way, ...] = ("blocked", "striped", "dealt")
MIXES = (10, 50, 90)
"""Percent of the routed tokens that are of the first group, text."""


@dataclass(frozen=True)
class Imbalance:
    """Tokens of the busiest expert rank over the mean rank's."""

    mean: float
    """Over layers: what a step pays."""
    worst: float
    """Of the worst layer."""


def imbalance(load: ExpertLoad, way: Way, ranks: int, percent: float) -> Imbalance:
    """`percent`: of the tokens are of the first group; the other groups share the rest as they did."""
    found = []
    for load_E in load.layers.values():
        mixed_E = _mixed(load, load_E, percent)
        slot_of = place(
            list(load.groups.values()), "blocked" if way == "blocked" else "striped", ranks,
            load_E if way == "dealt" else None,
        )  # fmt: skip
        per_rank = len(slot_of) // ranks
        carried = [0.0] * ranks
        for expert, slot in enumerate(slot_of):
            carried[slot // per_rank] += mixed_E[expert]
        found.append(max(carried) / mean(carried))
    return Imbalance(mean(found), max(found))


def _mixed(load: ExpertLoad, load_E: Sequence[float], percent: float) -> list[float]:
    """Shares of all tokens, for each expert. A group without tokens is taken as even."""
    groups = list(load.groups.values())
    totals = [sum(load_E[expert] for expert in group) for group in groups]
    first, others = percent / 100 if len(groups) > 1 else 1.0, sum(totals[1:])
    mixed_E = [0.0] * len(load_E)
    for number, (group, total) in enumerate(zip(groups, totals, strict=True)):
        share = first if number == 0 else (1 - first) * (total / others if others else 1 / (len(groups) - 1))
        for expert in group:
            mixed_E[expert] = share * (load_E[expert] / total if total else 1 / len(group))
    return mixed_E


def require_like(load: ExpertLoad, path: str, one: Prediction) -> None:
    """Loads of another number of experts, or of other groups, say nothing of this recipe. Layers may be others: those
    that were measured stand for all.
    """
    moe = one.plan.moe
    if moe is None or one.plan.layout.expert == 1:
        raise ConfigError("--loads", path, "the layout spreads no experts over ranks", "see another one, by --explain")
    theirs, ours = sorted(map(len, load.groups.values())), sorted(map(len, moe.groups))
    if theirs != ours:
        wrong = f"loads of groups of {theirs} experts, the recipe's are of {ours}"
        raise ConfigError("--loads", path, wrong, "give loads of a model with as many")


@dataclass(frozen=True)
class Cost:
    """A placement at a mix."""

    percent: int
    way: Way
    busiest: Imbalance
    seconds: float
    """Of a step."""
    by_even: float
    """Over those of a step with an even load."""


def costs(one: Prediction, load: ExpertLoad, assumed: Assumed) -> list[Cost]:
    """Every placement at every mix, in the layout that is predicted."""

    def seconds(busiest: float) -> float:
        known = replace(assumed, imbalance=busiest)
        return predict_recipe(one.plan.config, one.plan.facts, one.cluster, known).step.total

    even, rows = seconds(1.0), []
    for percent in MIXES:
        for way in WAYS:
            busiest = imbalance(load, way, one.plan.layout.expert, percent)
            took = seconds(busiest.mean)
            rows.append(Cost(percent, way, busiest, took, took / even))
    return rows


def describe_loads(rows: Sequence[Cost], load: ExpertLoad, ranks: int) -> list[str]:
    """The table of --loads."""
    names = ", ".join(f"{name} of {len(group)}" for name, group in load.groups.items())
    lines = [
        f"loads counted up to step {load.step} in {len(load.layers)} layers, experts of {names}; {ranks} expert ranks.",
        "busiest: tokens of the busiest expert rank by the mean one, over layers; a step pays their mean.",
        "",
        f"{'% text':>6}  {'placement':<10} {'busiest':>8} {'worst layer':>12} {'step, s':>8} {'by even':>8}",
    ]
    for row in rows:
        lines.append(
            f"{row.percent:>6}  {row.way:<10} {row.busiest.mean:>8.3f} {row.busiest.worst:>12.3f} "
            f"{row.seconds:>8.2f} {row.by_even:>8.2f}"
        )
    return [*lines, "", "dealt: striped with this file as moe.load_file. by even: over a step of an even load."]
