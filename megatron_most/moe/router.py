"""The modality-indexed router: Megatron-Core's TopKRouter with our gate, balance and placement.

It takes hidden states [S, B, D] and tag planes [S, B, P] (through Core's `padding_mask`), and gives Core's dispatcher
what it wants: weights and a boolean map, [T, slots]. Columns are slots, everything before them is in published ids.
Pads are routed by their tag like any token (their output is never read); they count in no loss and no telemetry.
"""

# S sequence, B batch, T = S*B tokens, D width, E routed experts, K experts per token, G expert groups, P tag planes

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter

from megatron_most import kernels
from megatron_most.config import MoEPlan
from megatron_most.errors import DataError
from megatron_most.moe import balance
from megatron_most.moe.gates import Choice, Fences, choose, fences, in_group_softmax, masked_full_softmax
from megatron_most.moe.groups import GroupTables
from megatron_most.moe.planes import NUM_PLANES, from_planes
from megatron_most.moe.sums import RouterSums

FLOAT32_BUFFERS = ("group_constant", "expert_bias")


class _Read(NamedTuple):
    """What the planes of a micro-batch say."""

    tags_T: torch.Tensor
    is_pad_T: torch.Tensor
    owned_TE: torch.Tensor
    counted_T: torch.Tensor
    """Tokens that choose and are no pads."""
    fenced: Fences


class ModalityRouter(TopKRouter):
    """Chooses experts of the token's own modality. Saved with the weights: group_constant (masked_softmax),
    expert_bias.
    """

    group_constant: torch.Tensor | None
    expert_bias: torch.Tensor | None
    is_fused = False
    """The choice in one kernel. Set by `fuse`."""

    def __init__(self, config: Any, pg_collection: Any = None, *, plan: MoEPlan, **kwargs: Any) -> None:
        super().__init__(config=config, pg_collection=pg_collection, **kwargs)
        self.plan = plan
        self.tables = GroupTables(plan)
        self.sums = RouterSums(plan)
        constant = torch.ones(len(plan.groups)) if plan.gate == "masked_softmax" else None
        bias = torch.zeros(plan.num_experts) if plan.bias_rate else None
        for name, value in zip(FLOAT32_BUFFERS, (constant, bias), strict=True):
            if hasattr(self, name):  # TopKRouter sets expert_bias = None
                delattr(self, name)
            self.register_buffer(name, value)

    def set_layer_number(self, layer_number: int) -> None:
        super().set_layer_number(layer_number)
        self.tables.slot_of_E = torch.tensor(self.plan.slots(layer_number - 1), device=self.tables.slot_of_E.device)

    def fuse(self) -> None:
        """Choose in one kernel, where the gate is the one that it knows: then `is_fused`."""
        plan = self.plan
        is_whole = plan.routing_groups_kept == plan.routing_groups and plan.aux_loss != "reference"
        self.is_fused = plan.gate == "masked_softmax" and is_whole

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ModalityRouter:
        """model.bfloat16() must not round the saved constants, nor the sums that telemetry counts in."""
        kept = {name: value for name in FLOAT32_BUFFERS if (value := getattr(self, name)) is not None}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def gating(self, input: torch.Tensor) -> torch.Tensor:
        """Logits in float32, whatever the model's precision (Core's own function needs Transformer Engine)."""
        return F.linear(input.float(), self.weight.float())

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [S, B, E], planes [S, B, P] -> weights [T, E] and map [T, E], columns by slot."""
        if padding_mask is None or padding_mask.ndim != 3 or padding_mask.size(-1) != NUM_PLANES:
            shape = None if padding_mask is None else tuple(padding_mask.shape)
            wrong = f"layer {self.layer_number}: tokens arrived without tags (planes {shape})"
            raise DataError(f"{wrong}; pass tag planes as padding_mask")
        length, batch, num_experts = logits.shape
        tags_T, is_pad_T, owned_TE, counted_T, fenced = self._read(padding_mask)
        logits_TE = logits.reshape(-1, num_experts)
        constant_M = None
        if self.group_constant is not None:  # shared-only tags: any; their weights are 0
            constant_M = self.group_constant[self.tables.group_of_tag_M]
        choice = count_TE = None
        if self.is_fused:
            weights_TE, map_TE, count_TE, scores_TE = kernels.routed(
                logits_TE, tags_T, is_pad_T, self.tables.owns_ME, self.tables.slot_of_E, constant_M, self.expert_bias,
                self.plan.top_k, self.plan.scale, self.plan.is_normalised,
            )  # fmt: skip
        else:
            constant_T = None if constant_M is None else constant_M.index_select(0, tags_T)
            choice = choose(logits_TE, owned_TE, constant_T, self.expert_bias, self.plan, fenced)
            slots_TK, scores_TE = self.tables.slot_of_E[choice.experts_TK], choice.scores_TE
            weights_TE = torch.zeros_like(logits_TE).scatter_(1, slots_TK, choice.weights_TK)
            map_TE = torch.zeros_like(owned_TE).scatter_(1, slots_TK, choice.is_chosen_TK)
        if torch.is_grad_enabled():  # once per token: under recompute the first pass runs without gradients
            if choice is not None:
                count_TE = _count(choice, counted_T, num_experts)
            assert count_TE is not None
            self.sums.add(logits_TE.detach(), owned_TE, count_TE, tags_T, is_pad_T, counted_T, self.tables)
            if self.training and (self.plan.aux_loss != "none" or self.plan.z_coefficient):
                aux = self._auxiliary(logits_TE, owned_TE, scores_TE, choice, count_TE, counted_T, (length, batch))
                weights_TE = MoEAuxLossAutoScaler.apply(weights_TE, aux)
        return weights_TE, map_TE

    def _read(self, planes_SBP: torch.Tensor) -> _Read:
        """Once for all layers that get the same planes: each turns the tensor that the model made, and what was read is
        kept with that.
        """
        made = planes_SBP if planes_SBP._base is None else planes_SBP._base
        key = (planes_SBP.shape, planes_SBP.stride(), made._version)
        kept: tuple[Any, Any, _Read] | None = getattr(made, "_read", None)
        if kept is None or kept[0] is not self.plan or kept[1] != key:
            tags_T, is_pad_T = (part.flatten() for part in from_planes(planes_SBP))
            owned_TE = self.tables.owns_ME.index_select(0, tags_T)
            counted_T = self.tables.owns_ME.any(-1).index_select(0, tags_T) & ~is_pad_T
            kept = self.plan, key, _Read(tags_T, is_pad_T, owned_TE, counted_T, fences(owned_TE, torch.float32))
            if made.numel() == planes_SBP.numel():  # else it has several of them, one like another
                made._read = kept  # type: ignore[attr-defined]
        return kept[2]

    def _auxiliary(
        self, logits_TE: torch.Tensor, owned_TE: torch.Tensor, scores_TE: torch.Tensor, choice: Choice | None,
        count_TE: torch.Tensor, counted_T: torch.Tensor, shape: tuple[int, int],
    ) -> torch.Tensor:  # fmt: skip
        """The weighted auxiliary losses of this micro-batch: a sum over its sequences (see balance.py)."""
        plan, scope, ranks = self.plan, self.plan.aux_scope, self.tp_cp_group
        total = logits_TE.new_zeros(())
        if plan.aux_loss == "group":
            is_gates = plan.gate == "masked_softmax"  # then the choice has computed it
            probs_TE = scores_TE if is_gates else in_group_softmax(logits_TE, owned_TE)
            probs_TE = probs_TE * counted_T.unsqueeze(-1)
            probs_SBE, count_SBE = probs_TE.unflatten(0, shape), count_TE.unflatten(0, shape)
            value, sequences = balance.group_loss(probs_SBE, count_SBE, self.tables.owns_GE, plan.top_k, scope, ranks)
        elif plan.aux_loss == "reference":
            in_means_T = counted_T
            if plan.aux_counts_everything:  # the release counts pads, and the tied slots of shared-only tokens as well
                in_means_T = torch.ones_like(counted_T)
                assert choice is not None, "the kernel is not asked for this loss"
                count_TE = torch.zeros_like(logits_TE).scatter_(1, choice.experts_TK, 1.0)
            is_gates = plan.gate == "reference"
            seen_TE = scores_TE if is_gates else masked_full_softmax(logits_TE, owned_TE)
            scores_TE = seen_TE * in_means_T.unsqueeze(-1)
            scores_SBE, count_SBE = scores_TE.unflatten(0, shape), count_TE.unflatten(0, shape)
            in_means_SB = in_means_T.unflatten(0, shape)
            value, sequences = balance.reference_loss(scores_SBE, count_SBE, in_means_SB, plan.top_k, scope, ranks)
        if plan.aux_loss != "none":
            self.sums.add_balance(value.detach(), sequences / ranks.size())
            total = total + plan.aux_coefficient * value
        if plan.z_coefficient:
            seen_TE = logits_TE  # what the gate's softmax sees
            if plan.gate == "masked_softmax":
                seen_TE = logits_TE.masked_fill(owned_TE.any(-1, keepdim=True) & ~owned_TE, float("-inf"))
            log_sum_SB, counted_SB = seen_TE.logsumexp(-1).unflatten(0, shape), counted_T.unflatten(0, shape)
            total = total + plan.z_coefficient * balance.z_loss(log_sum_SB, counted_SB, scope, ranks)
        return total


def routers(model: torch.nn.Module) -> list[ModalityRouter]:
    """The routers of this rank's layers, in order."""
    return [module for module in model.modules() if isinstance(module, ModalityRouter)]


def set_auxiliary_scale(scale: float, device: torch.device) -> None:
    """What the auxiliary losses' gradients are multiplied by. Core's schedules set it; hand-written loops call this."""
    MoEAuxLossAutoScaler.set_loss_scale(torch.full((1,), scale, device=device))


@torch.no_grad()
def move_biases(model: torch.nn.Module, ranks: dist.ProcessGroup | None, share: float) -> None:
    """After an optimizer step: shift every layer's choice bias by the load since the last one (no-op without
    bias_rate).

    `ranks` hold other tokens of the same layers (tensor x context x data parallel); all of them call it. `share`: of
    bias_rate. Biases that never move less swing about the even load for ever.
    """
    mine = [router for router in routers(model) if router.expert_bias is not None]
    if not mine:
        return
    load = torch.stack([router.sums.parts()[1] for router in mine])
    if ranks is not None and ranks.size() > 1:
        dist.all_reduce(load, group=ranks)
    for router, load_E in zip(mine, load, strict=True):
        assert router.expert_bias is not None
        rate = share * router.plan.bias_rate
        moved = balance.moved_bias(router.expert_bias.double(), load_E, router.tables.owns_GE, rate)
        router.expert_bias.copy_(moved)
        router.sums.parts()[1].zero_()


def _count(choice: Choice, counted_T: torch.Tensor, num_experts: int) -> torch.Tensor:
    """1.0 where a counted token chose an expert, [T, E] in published ids."""
    ones_TK = (choice.is_chosen_TK & counted_T.unsqueeze(-1)).float()
    return ones_TK.new_zeros(ones_TK.size(0), num_experts).scatter_(1, choice.experts_TK, ones_TK)
