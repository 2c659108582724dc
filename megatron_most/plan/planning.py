"""From the options of plan.py to what it prints: layouts searched or the recipe's own, one in full, its cost."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_most.config import ExpertLoad, RunConfig, from_command_line
from megatron_most.errors import ConfigError, LayoutError
from megatron_most.model import core_config
from megatron_most.plan import describe
from megatron_most.plan.command import LEAVE_OUT, seconds_of
from megatron_most.plan.loads import costs, describe_loads, require_like
from megatron_most.plan.machine import GIB, MACHINES, SHARES, Assumed, Machine
from megatron_most.plan.measured import compare, describe_measured, table, write_report
from megatron_most.plan.prediction import Cluster, Prediction, cost_of
from megatron_most.plan.ranking import Found, facts_for, for_planning, predict_recipe, search, without_refused_by
from megatron_most.plan.scaling import write_page
from megatron_most.plan.storage import Storage
from megatron_most.plan.weights import tensors_of
from megatron_most.upstream import core_version


def plan_run(chosen: argparse.Namespace, words: Sequence[str]) -> int:
    """`chosen`: the parser's; `words`: what it does not know, fields of the recipe. The exit code."""
    assumed = _assumed(chosen.assume)
    if chosen.page is not None:
        write_page(chosen.page, assumed)
        return 0
    if chosen.measured:
        return _measured(chosen, words, assumed)
    for flag, value in (("--report", chosen.report), ("--leave-out", chosen.leave_out)):
        if value is not None:
            raise ConfigError(flag, value, "it is for --measured", "name the runs: plan.py --measured RUN...")
    config = _config(chosen, words)
    cluster = Cluster(nodes=chosen.nodes, gpus=chosen.gpus, machine=_machine(chosen))
    facts = facts_for(cluster, core_version())
    limit = None if chosen.time_limit is None else seconds_of(chosen.time_limit)
    if chosen.explain == "recipe":
        found, one = None, predict_recipe(config, facts, cluster, assumed)
        core_config(one.plan)
    else:
        number = _number(chosen.explain) if chosen.explain else 1
        found = without_refused_by(core_config, search(config, facts, cluster, assumed), max(chosen.top, number))
        if not found.ranked:
            raise _nothing_fits(found, cluster)
        if number > len(found.ranked):
            raise ConfigError("--explain", number, f"only {len(found.ranked)} layouts fit", "give a smaller number")
        one = found.ranked[number - 1]
    load = None
    if chosen.loads is not None:
        load = ExpertLoad.load(chosen.loads)
        require_like(load, str(chosen.loads), one)
    rows = costs(one, load, assumed) if load is not None else []
    _print(chosen, found, one, config, assumed)
    if one.lacks > 0:
        raise LayoutError(
            f"the recipe's layout does not fit: {one.memory.total / GIB:,.1f} GiB on a rank, "
            f"{cluster.machine.memory / GIB:.0f} there are; see what fits with plan.py without --explain"
        )
    cost = cost_of(one, tensors_of(one.plan), assumed, limit, chosen.jobs)
    _require_room(cost.storage, chosen.quota)
    if chosen.json:
        loads = {"loads": [dataclasses.asdict(row) for row in rows]} if rows else {}
        print(json.dumps(_json(found, one, cost) | loads, indent=1))
        return 0
    name = "the recipe's layout" if found is None else f"layout {found.ranked.index(one) + 1}"
    _say(["", *describe.describe_cost(one, cost, name)])
    if load is not None:
        _say(["", *describe_loads(rows, load, one.plan.layout.expert)])
    return 0


def _require_room(storage: Storage, quota: float | None) -> None:
    if quota is not None and storage.quota > quota * 1e12:
        raise ConfigError(
            "--quota", quota, f"{storage.kept} checkpoints of {storage.checkpoint / 1e12:,.3g} TB are there at once, "
            f"{storage.quota / 1e12:,.3g} TB", "lower checkpoint.keep, or find more room",
        )  # fmt: skip


def _measured(chosen: argparse.Namespace, words: Sequence[str], assumed: Assumed) -> int:
    if words:
        raise ConfigError("--measured", words[0], "the recipe is that of the runs", "leave fields of a recipe out")
    if chosen.loads is not None:
        raise ConfigError("--loads", str(chosen.loads), "it is for predictions", "leave it out")
    if chosen.json:
        raise ConfigError("--json", "--measured", "it is for predictions", "leave it out, or use --report FILE")
    left_out = chosen.leave_out or LEAVE_OUT
    pairs = compare(chosen.measured, _machine(chosen), assumed, left_out)
    if chosen.report is not None:
        write_report(pairs, chosen.report, left_out)
    _say([*describe_measured(pairs, left_out), "", *table(pairs)])
    return 0


def _print(
    chosen: argparse.Namespace, found: Found | None, one: Prediction, config: RunConfig, assumed: Assumed
) -> None:
    if chosen.json:
        return
    _say([*describe.describe_run(one), ""])
    if found is not None:
        _say(describe.describe_found(found))
        _say(["", *_recipe_line(config, one, assumed), "", *describe.describe_refused(found.refused, found.tried)])
    if chosen.explain:
        _say(["", *describe.describe_one(one)])


def _recipe_line(config: RunConfig, one: Prediction, assumed: Assumed) -> list[str]:
    """How the recipe's own layout would do, in one line."""
    try:
        own = predict_recipe(config, one.plan.facts, one.cluster, assumed)
    except (ConfigError, LayoutError) as error:
        return [f"the recipe's own layout is refused: {error}"]
    fits = "fits" if own.lacks <= 0 else f"does not fit: {own.lacks / GIB:,.1f} GiB too many"
    return [
        f"the recipe's own layout (--explain recipe) {fits}, {own.step.total:.2f} s a step: "
        f"{own.step.total / one.step.total:.2f} times that of the best"
    ]


def _json(found: Found | None, one: Prediction, cost: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"chosen": describe.to_dict(one), "cost": dataclasses.asdict(cost)}
    body["cost"] |= {"days": cost.days, "quota_bytes": cost.storage.quota, "quota_files": cost.storage.inodes}
    if found is not None:
        body["ranked"] = [describe.to_dict(other) for other in found.ranked]
        body["refused"] = [dataclasses.asdict(other) for other in found.refused]
        body["tried"] = found.tried
    return body


def _say(lines: Sequence[str]) -> None:
    print("\n".join(lines))


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ConfigError("--explain", text, "neither a number of the table nor recipe", "give 1, 2, ... or recipe")
    return int(text)


def _config(chosen: argparse.Namespace, words: Sequence[str]) -> RunConfig:
    config = from_command_line([*words, "--config", chosen.config], prog="plan.py")
    train = {"sequence_length": chosen.sequence, "global_batch_size": chosen.batch}
    given = {name: value for name, value in train.items() if value is not None}
    return for_planning(replace(config, train=replace(config.train, **given)))


def _machine(chosen: argparse.Namespace) -> Machine:
    given = {"memory": (chosen.memory, GIB), "peak": (chosen.peak, 1e12), "inside": (chosen.inside, 1e9)}
    given["between"] = chosen.between, 1e9
    changes = {name: value * unit for name, (value, unit) in given.items() if value is not None}
    return replace(MACHINES[chosen.machine], **changes)


def _assumed(words: Sequence[str]) -> Assumed:
    known = {f.name: f.default for f in dataclasses.fields(Assumed)}
    values: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in known:
            raise ConfigError("--assume", word, "no such assumption", f"use one of {', '.join(known)}")
        try:
            values[name] = float(text)
        except ValueError:
            raise ConfigError("--assume", word, "no number follows", f"write {name}={known[name]}") from None
        if not 0 <= values[name] < float("inf") or (not values[name] and known[name]):
            raise ConfigError("--assume", word, "not a number above 0", f"write {name}={known[name]}")
        if name in SHARES and values[name] > 1:
            raise ConfigError("--assume", word, "a share is at most 1", f"write {name}={known[name]}")
        if name == "imbalance" and values[name] < 1:
            raise ConfigError("--assume", word, "the busiest rank has at least the mean", f"write {name}={known[name]}")
    return Assumed(**values)


def _nothing_fits(found: Found, cluster: Cluster) -> LayoutError:
    reasons = "; ".join(f"{one.count} x {one.reason} ({one.example})" for one in found.refused[:4])
    return LayoutError(
        f"no layout of {cluster.world:,} GPUs fits: {reasons}; take more nodes, GPUs with more memory, or a smaller "
        "train.sequence_length"
    )
