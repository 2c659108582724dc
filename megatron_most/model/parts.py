"""Which part of the model each weight belongs to: what gradient norms are told by.

Parts are the same on all ranks and in every layout; those that a model has depend on its plan alone. The experts of
each group are a part of their own, found by what their slots hold.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from megatron_most.config import Plan

_EXPERT = re.compile(r"(.*\.mlp)\.experts\.local_experts\.(\d+)\.")


def part_names(plan: Plan) -> tuple[str, ...]:
    """The parts of a model, in the order in which a token meets them."""
    config = plan.config
    names = ["embedding", *(["wave"] if config.model.wave_size else []), "norms", "attention"]
    if plan.moe is None or config.moe.dense_layers:
        names.append("dense")
    if plan.moe is not None:
        names += ["router", *(f"experts.{name}" for name in plan.moe.group_names)]
        names += ["shared_experts"] if config.moe.shared_hidden_size else []
    return (*names, *([] if config.model.tied_embeddings else ["head"]))


def part_of_weights(model: torch.nn.Module, plan: Plan) -> dict[torch.nn.Parameter, int]:
    """For each weight this rank holds, the place of its part in part_names."""
    names = part_names(plan)
    return {weight: names.index(_part(name, model, plan)) for name, weight in model.named_parameters()}


def _part(name: str, model: torch.nn.Module, plan: Plan) -> str:
    expert = _EXPERT.match(name)
    if expert is not None and plan.moe is not None:
        slots: Any = model.get_submodule(expert[1]).local_expert_indices
        published = plan.moe.expert_at(0)[slots[int(expert[2])]]
        group = next(at for at, experts in enumerate(plan.moe.groups) if published in experts)
        return f"experts.{plan.moe.group_names[group]}"
    for sign, part in (
        ("wave.", "wave"),  # with the norms of the encoder's layers
        ("norm", "norms"),  # those of attention's latents too
        ("embedding.", "embedding"),
        ("output_layer.", "embedding" if plan.config.model.tied_embeddings else "head"),
        (".self_attention.", "attention"),
        (".router.", "router"),
        (".shared_experts.", "shared_experts"),
        (".mlp.", "dense"),
    ):
        if sign in name:
            return part
    raise AssertionError(f"{name}: belongs to no part of the model that is known")
