"""What `build()` returns: plain values with nothing left to decide. Rooms above take the part they need.

`Facts` is what the machine says (upstream/ and runtime/ find it out); it is passed in, so this floor needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from megatron_most.config.schema import RunConfig
from megatron_most.vocab import TokenMap


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The machine and the libraries a run will meet."""

    world_size: int
    device: Literal["cpu", "gpu"]
    core_version: tuple[int, int]
    """Of Megatron-Core, as (0, 16)."""
    has_transformer_engine: bool = False


@dataclass(frozen=True, kw_only=True)
class LayoutPlan:
    """Every parallel size."""

    world: int
    data: int
    tensor: int
    pipeline: int
    context: int
    expert: int
    expert_tensor: int
    expert_data: int

    def __str__(self) -> str:
        named = {"TP": self.tensor, "PP": self.pipeline, "CP": self.context, "EP": self.expert, "DP": self.data}
        return "x".join(f"{name}{size}" for name, size in named.items() if size > 1) or "one process"


@dataclass(frozen=True, kw_only=True)
class MoEPlan:
    """Experts, groups and slots; every expert id is the published one."""

    num_experts: int
    top_k: int
    groups: tuple[tuple[int, ...], ...]
    """Expert ids of each group, ascending."""
    group_names: tuple[str, ...]
    group_of_tag: tuple[int | None, ...]
    """For each tag: its group, or None where the shared experts act alone."""
    shared_only: tuple[int, ...]
    """Tags that use the shared experts alone."""
    slot_of: tuple[int, ...]
    """Placement: for each expert id its slot; expert-parallel rank r holds slots r*n .. r*n+n-1. Which group a slot
    belongs to is the same in all layers.
    """
    dealt: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Layers, from 0, whose placement is their own: dealt by moe.load_file."""
    gate: Literal["masked_softmax", "reference"]
    normalise_top_k: bool
    scale: float
    routing_groups: int
    routing_groups_kept: int
    """Group-limited routing; equal numbers mean no limit."""
    aux_loss: Literal["none", "group", "reference"]
    aux_coefficient: float
    aux_scope: Literal["sequence", "batch"]
    aux_counts_everything: bool
    z_coefficient: float
    bias_rate: float
    dispatcher: Literal["alltoall", "allgather"]

    @property
    def is_normalised(self) -> bool:
        """Whether a token's weights are divided by their sum; of one it never is, as released."""
        return self.normalise_top_k and self.top_k > 1

    def slots(self, layer: int) -> tuple[int, ...]:
        """For each expert id its slot in this layer, counted from 0."""
        return self.dealt.get(layer, self.slot_of)

    def expert_at(self, layer: int) -> tuple[int, ...]:
        """The expert id in each slot of a layer: the inverse of slots()."""
        at = [0] * self.num_experts
        for expert, slot in enumerate(self.slots(layer)):
            at[slot] = expert
        return tuple(at)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One checked run. `moe` is None for a dense model."""

    config: RunConfig
    facts: Facts
    tokens: TokenMap
    layout: LayoutPlan
    micro_batches: int
    """Of each data-parallel rank in a step of train.global_batch_size rows; where they do not divide, the last one
    holds fillers. Steps of a growing batch, or of one that counts documents, may have other numbers.
    """
    moe: MoEPlan | None
