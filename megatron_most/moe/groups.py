"""A plan's partition and placement as tensors: who owns what, who may choose whom, who sits where.

Everything is indexed by published expert id; `slot_of_E` says where an expert sits. Tags that own nothing
have an empty row in `owns_ME`; only tags declared shared-only may (build() refuses the others).
"""

# M tags, G expert groups, E routed experts

from __future__ import annotations

import torch

from megatron_most.config import MoEPlan
from megatron_most.vocab import TAG_NAMES


class GroupTables(torch.nn.Module):
    """Constant lookup tables of one layer's router; they move with the module and are in no checkpoint."""

    owns_ME: torch.Tensor
    owns_GE: torch.Tensor
    group_of_tag_M: torch.Tensor
    slot_of_E: torch.Tensor

    def __init__(self, plan: MoEPlan) -> None:
        super().__init__()
        owns_GE = torch.zeros(len(plan.groups), plan.num_experts, dtype=torch.bool)
        for group, experts in enumerate(plan.groups):
            owns_GE[group, list(experts)] = True
        owns_ME = torch.zeros(len(TAG_NAMES), plan.num_experts, dtype=torch.bool)
        for tag, group_of in enumerate(plan.group_of_tag):
            if group_of is not None:
                owns_ME[tag] = owns_GE[group_of]
        tables = {
            "owns_GE": owns_GE,
            "owns_ME": owns_ME,
            "group_of_tag_M": torch.tensor([-1 if group is None else group for group in plan.group_of_tag]),
            "slot_of_E": torch.tensor(plan.slot_of),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
