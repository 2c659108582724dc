"""What the experts of a layer did since the last look: sums that add up over micro-batches and ranks, then plain
numbers.

`RouterSums` lives in each router and costs a few small sums a micro-batch; `collect` reduces all layers of all pipeline
stages in one exchange and resets them. Pads count nowhere; shared-only tokens count only in tokens per tag.
"""

# T tokens, E routed experts, G expert groups, M tags

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from megatron_most.config import MoEPlan
from megatron_most.vocab import TAG_NAMES

if TYPE_CHECKING:
    from megatron_most.moe.groups import GroupTables
    from megatron_most.moe.router import ModalityRouter


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
    """Mean share of the softmax over ALL experts that falls inside the group."""
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


class RouterSums(torch.nn.Module):
    """Running sums of one router; float64 whatever the model's precision, and in no checkpoint."""

    sums: torch.Tensor

    def __init__(self, plan: MoEPlan) -> None:
        super().__init__()
        groups = len(plan.groups)
        self.sizes = (plan.num_experts, plan.num_experts, len(TAG_NAMES), groups, groups, groups, 2)
        self.register_buffer("sums", torch.zeros(sum(self.sizes), dtype=torch.float64), persistent=False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Stay in float64 through model.bfloat16(): counts would stop growing at 256."""
        value = self.sums
        super()._apply(fn, recurse)
        self.sums = value.to(self.sums.device)
        return self

    def forget(self, *, keep_step: bool) -> None:
        """Start again from 0; keep_step leaves the load since the last bias step alone."""
        for index, part in enumerate(self.parts()):
            if index != 1 or not keep_step:
                part.zero_()

    def parts(self) -> Sequence[torch.Tensor]:
        """Views: load_E since the last look, load_E since the last bias step, tokens_M, tokens_G, mass_G, entropy_G,
        (balance loss, sequences).
        """
        return self.sums.split(self.sizes)

    @torch.no_grad()
    def add(
        self, logits_TE: torch.Tensor, owned_TE: torch.Tensor, count_TE: torch.Tensor, tags_T: torch.Tensor,
        is_pad_T: torch.Tensor, counted_T: torch.Tensor, tables: GroupTables,
    ) -> None:  # fmt: skip
        """Add one micro-batch (this rank's tokens of it)."""
        load_E, step_load_E, tokens_M, tokens_G, mass_G, entropy_G, _ = self.parts()
        count_E = count_TE.sum(0)
        load_E += count_E
        step_load_E += count_E
        # Weights of 0 and 1 rather than boolean indexing, which would make a GPU wait for the CPU in every layer.
        tokens_M.index_add_(0, tags_T, (~is_pad_T).to(self.sums.dtype))
        log_q_TE = logits_TE.log_softmax(-1)
        owns_any_T1 = owned_TE.any(-1, keepdim=True)
        log_mass_T1 = log_q_TE.masked_fill(owns_any_T1 & ~owned_TE, float("-inf")).logsumexp(-1, keepdim=True)
        log_p_TE = (log_q_TE - log_mass_T1).masked_fill(~owned_TE, float("-inf"))
        entropy_T = torch.special.entr(log_p_TE.exp()).sum(-1)
        group_T = tables.group_of_tag_M[tags_T].clamp(min=0)  # shared-only tokens go to group 0 with weight 0
        weight_T = counted_T.to(self.sums.dtype)
        tokens_G.index_add_(0, group_T, weight_T)
        mass_G.index_add_(0, group_T, log_mass_T1.squeeze(-1).exp() * weight_T)
        entropy_G.index_add_(0, group_T, entropy_T * weight_T)

    def add_balance(self, value: torch.Tensor, sequences: float) -> None:
        """Add a balance loss (this rank's part of it) and the number of sequences it is over (likewise)."""
        balance = self.parts()[-1]
        balance[0] += value
        balance[1] += sequences


def describe(layer: int, sums: Sequence[torch.Tensor], plan: MoEPlan) -> LayerTelemetry:
    """Reduced sums -> plain numbers."""
    load_E, _, tokens_M, tokens_G, mass_G, entropy_G, (balance, sequences) = sums
    groups = []
    for index, (name, experts) in enumerate(zip(plan.group_names, plan.groups, strict=True)):
        load, tokens = load_E[list(experts)], tokens_G[index].item()
        mean = load.mean().item()
        undecided = torch.log(torch.tensor(float(len(experts)))).item() or 1.0
        groups.append(
            GroupTelemetry(
                name=name,
                num_tokens=round(tokens),
                load_max_over_mean=load.max().item() / mean if mean else 0.0,
                dead_experts=tuple(e for e, n in zip(experts, load.tolist(), strict=True) if not n) if tokens else (),
                in_group_mass=mass_G[index].item() / tokens if tokens else 0.0,
                entropy=entropy_G[index].item() / tokens / undecided if tokens else 0.0,
            )
        )
    return LayerTelemetry(
        layer=layer,
        load=tuple(round(n) for n in load_E.tolist()),
        tokens_per_tag={name: round(n) for name, n in zip(TAG_NAMES, tokens_M.tolist(), strict=True)},
        groups=tuple(groups),
        balance_loss=float(balance / sequences) if sequences else 0.0,
    )


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
