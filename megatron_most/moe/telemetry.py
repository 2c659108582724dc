"""What the experts of a layer did since the last look, as plain numbers.

`collect` reduces the running sums of all layers of all pipeline stages (see sums.py) in one exchange and resets them.
Pads count nowhere; shared-only tokens count only in tokens per tag.
"""

# T tokens, E routed experts, G expert groups, M tags

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_most.config import MoEPlan
from megatron_most.moe.router import ModalityRouter
from megatron_most.vocab import TAG_NAMES


@dataclass(frozen=True)
class GroupTelemetry:
    """One expert group of one layer."""

    name: str
    num_tokens: int
    load_max_over_mean: float
    """1.0 is perfect balance; 0 when the group saw no token."""
    dead_experts: tuple[int, ...]
    """Published ids of experts that no token chose, though the group had tokens."""
    in_group_mass: float
    """Mean share of the softmax over ALL experts that falls inside the group; 0 where it was not measured."""
    entropy: float
    """Mean entropy of the in-group softmax, as a share of log(group size): 1 is undecided, 0 is certain."""


@dataclass(frozen=True)
class LayerTelemetry:
    """One MoE layer, counted from 0."""

    layer: int
    load: tuple[int, ...]
    """Tokens per expert, by published id."""
    tokens_per_tag: dict[str, int]
    groups: tuple[GroupTelemetry, ...]
    balance_loss: float
    """Mean of the auxiliary loss over sequences, before its coefficient; of `group`, 1.0 is perfect. 0 without one."""


def describe(layer: int, sums: Sequence[torch.Tensor], plan: MoEPlan) -> LayerTelemetry:
    """Reduced sums -> plain numbers."""
    load_E, _, tokens_M, close_G, mass_G, entropy_G, (balance, sequences) = sums
    groups = []
    for index, (name, experts) in enumerate(zip(plan.group_names, plan.groups, strict=True)):
        load, close = load_E[list(experts)], close_G[index].item()
        tokens = sum(tokens_M[tag].item() for tag, group in enumerate(plan.group_of_tag) if group == index)
        mean = load.mean().item()
        undecided = torch.log(torch.tensor(float(len(experts)))).item() or 1.0
        groups.append(
            GroupTelemetry(
                name=name,
                num_tokens=round(tokens),
                load_max_over_mean=load.max().item() / mean if mean else 0.0,
                dead_experts=tuple(e for e, n in zip(experts, load.tolist(), strict=True) if not n) if tokens else (),
                in_group_mass=mass_G[index].item() / close if close else 0.0,
                entropy=entropy_G[index].item() / close / undecided if close else 0.0,
            )
        )
    return LayerTelemetry(
        layer=layer,
        load=tuple(round(n) for n in load_E.tolist()),
        tokens_per_tag={name: round(n) for name, n in zip(TAG_NAMES, tokens_M.tolist(), strict=True)},
        groups=tuple(groups),
        balance_loss=float(balance / sequences) if sequences else 0.0,
    )


def measure_closely(routers: Sequence[ModalityRouter], is_close: bool) -> None:
    """Whether the next micro-batches count for mass and entropy too, as they do unless told otherwise. Loads and tokens
    are always counted.
    """
    for router in routers:
        router.sums.is_close = is_close


def collect(
    routers: Sequence[ModalityRouter], ranks: dist.ProcessGroup | None, stages: dist.ProcessGroup | None
) -> tuple[LayerTelemetry, ...]:
    """Every MoE layer of every pipeline stage, in order; resets the sums. All ranks call it.

    `ranks` hold other tokens of the same layers (tensor x context x data parallel), `stages` other layers.
    """
    layers: list[LayerTelemetry] = []
    if routers:
        stacked = torch.stack([router.sums.sums for router in routers])
        if ranks is not None and ranks.size() > 1:
            dist.all_reduce(stacked, group=ranks)
        for router, sums in zip(routers, stacked.cpu(), strict=True):
            layers.append(describe(router.layer_number - 1, sums.split(router.sums.sizes), router.plan))
            router.sums.forget(keep_step=True)
    if stages is None or stages.size() == 1:
        return tuple(layers)
    every: list[list[LayerTelemetry] | None] = [None] * stages.size()
    dist.all_gather_object(every, layers, group=stages)
    return tuple(sorted((layer for part in every for layer in part or ()), key=lambda layer: layer.layer))
