"""Runs to try: the smallest recipe with some fields changed, on a machine with some facts changed."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from megatron_most.config import Facts, Plan, RunConfig, build, load_recipe, replace
from megatron_most.vocab import TAG_NAMES

TINY = replace(  # what its training is like is the recipe's business
    load_recipe("most-tiny"),
    {"train.sequence_length": 32, "train.micro_batch_size": 1, "train.global_batch_size": 8},
)
MACHINE: dict[str, Any] = {"world_size": 1, "device": "cpu", "core_version": (0, 16)}


def plan_for(changes: dict[str, Any], **facts: Any) -> Plan:
    return build(replace(TINY, changes), Facts(**{**MACHINE, **facts}))


def fields_of(kind: type, at: str = "") -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        named |= fields_of(hint, f"{at}{name}.") if dataclasses.is_dataclass(hint) else {f"{at}{name}": hint}
    return named


FIELDS = fields_of(RunConfig)


def check_invariants(plan: Plan) -> None:
    """What rooms above rely on, for any plan."""
    layout = plan.layout
    assert layout.world == layout.data * layout.tensor * layout.pipeline * layout.context
    assert layout.world == layout.expert_data * layout.expert * layout.expert_tensor * layout.pipeline
    assert plan.tokens.vocab_size % layout.tensor == 0 == plan.config.model.num_layers % layout.pipeline
    moe = plan.moe
    assert (moe is None) == (plan.config.moe.num_experts == 0)
    if moe is None:
        return
    assert sorted(expert for group in moe.groups for expert in group) == list(range(moe.num_experts))
    assert sorted(moe.slot_of) == list(range(moe.num_experts))
    assert [moe.expert_at(1)[slot] for slot in moe.slot_of] == list(range(moe.num_experts))
    for tag, group in enumerate(moe.group_of_tag):
        assert (group is None) == (tag in moe.shared_only)
        if group is not None:
            assert TAG_NAMES[tag] in moe.group_names[group].split("+") and len(moe.groups[group]) >= moe.top_k
    assert len(set(moe.shared_only)) == len(moe.shared_only)
    assert moe.dispatcher in ("alltoall", "allgather")


def leaves(value: Any, at: str = "") -> dict[str, Any]:
    if not dataclasses.is_dataclass(value):
        return {at: value}
    parts = (leaves(getattr(value, f.name), f"{at}.{f.name}" if at else f.name) for f in dataclasses.fields(value))
    return {name: leaf for part in parts for name, leaf in part.items()}
