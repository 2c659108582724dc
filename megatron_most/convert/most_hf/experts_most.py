"""The feed-forward half of a MoST layer: the gate, the experts of each modality, the shared ones.

    y_t = sum over e in TopK(t) of w_te * Expert_e(x_t)  +  Shared(x_t),      TopK inside the group of t's tag

Part of the code in every exported folder (see modeling_most.py). Who owns what comes with each call, as `owned_TE` and
`group_T`: made once for all layers, and safe under gradient checkpointing.
"""

# T tokens, B rows, S tokens of a row, D width, E routed experts, K experts per token, R (token, expert) pairs,
# N routing groups

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_most import MostConfig


class MostMLP(nn.Module):
    """A feed-forward: dense, shared, or one routed expert."""

    def __init__(self, config: MostConfig, inner_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.down_proj = nn.Linear(inner_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MostGate(nn.Module):
    """Which experts each token gets, and with which weights, in float32. `owned_TE`: the experts of its tag's group."""

    group_constant: torch.Tensor | None
    expert_bias: torch.Tensor | None

    def __init__(self, config: MostConfig) -> None:
        super().__init__()
        self.config = config
        num_experts = config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(num_experts, config.hidden_size))
        constant = torch.ones(len(config.groups), dtype=torch.float32) if config.gate == "masked_softmax" else None
        bias = torch.zeros(num_experts, dtype=torch.float32) if config.use_expert_bias else None
        self.register_buffer("group_constant", constant)
        self.register_buffer("expert_bias", bias)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MostGate:
        """model.bfloat16() must not round what the gate adds and multiplies by."""
        kept = {name: buffer for name, buffer in self.named_buffers(recurse=False)}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float32:
                setattr(self, name, buffer.to(moved.device))
        return self

    def forward(
        self, x_TD: torch.Tensor, owned_TE: torch.Tensor, group_T: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(experts_TK, weights_TK, is_chosen_TK); a slot without a candidate weighs 0 and names any expert."""
        config = self.config
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.float(), self.weight.float())
        all_TE = logits_TE.softmax(-1)
        if config.gate == "masked_softmax":
            owns_any_T1 = owned_TE.any(-1, keepdim=True)  # a row of -inf would be NaN, in the backward pass too
            all_TE = logits_TE.masked_fill(owns_any_T1 & ~owned_TE, float("-inf")).softmax(-1)
        scores_TE = all_TE.masked_fill(~owned_TE, 0.0)
        ranking_TE = scores_TE.detach()
        if self.expert_bias is not None:
            ranking_TE = ranking_TE + self.expert_bias
        # -inf, not 0: an expert of the group whose score underflowed must still beat a foreign one.
        ranking_TE = ranking_TE.masked_fill(~owned_TE, float("-inf"))
        if config.topk_method == "group_limited_greedy":
            # The reference gate ranks routing groups by their best expert of any modality, as released.
            best_of = all_TE if config.gate == "reference" else scores_TE
            ranking_TE = self._in_best_routing_groups(ranking_TE, best_of.detach(), owned_TE)
        best_TK, experts_TK = ranking_TE.topk(config.num_experts_per_tok, dim=-1)
        is_chosen_TK = best_TK > float("-inf")
        weights_TK = scores_TE.gather(-1, experts_TK).masked_fill(~is_chosen_TK, 0.0)
        normalise = config.norm_topk_prob and config.num_experts_per_tok > 1
        if normalise:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        if config.gate == "masked_softmax" or not normalise:
            weights_TK = weights_TK * config.routed_scaling_factor
        if self.group_constant is not None:
            weights_TK = weights_TK * self.group_constant[group_T].unsqueeze(-1)
        return experts_TK, weights_TK, is_chosen_TK

    def _in_best_routing_groups(
        self, ranking_TE: torch.Tensor, best_of_TE: torch.Tensor, owned_TE: torch.Tensor
    ) -> torch.Tensor:
        """The ranking with -inf outside the best `topk_group` runs of ids; a run without an owned expert comes last."""
        runs = (owned_TE.size(0), self.config.n_group, -1)
        has_own_TN = owned_TE.view(runs).any(-1)
        best_TN = best_of_TE.reshape(runs).amax(-1).masked_fill(~has_own_TN, -1.0)
        kept = best_TN.topk(self.config.topk_group, dim=-1).indices
        kept_TN = torch.zeros_like(has_own_TN).scatter(1, kept, True)
        return ranking_TE.view(runs).masked_fill(~kept_TN.unsqueeze(-1), float("-inf")).view_as(ranking_TE)


class MostMoE(nn.Module):
    """Experts of the token's own modality, and the shared ones."""

    def __init__(self, config: MostConfig) -> None:
        super().__init__()
        self.gate = MostGate(config)
        self.experts = nn.ModuleList(
            MostMLP(config, config.moe_intermediate_size) for _ in range(config.n_routed_experts)
        )
        self.shared_experts = MostMLP(config, config.shared_size) if config.shared_size else None

    def forward(self, x_BSD: torch.Tensor, owned_TE: torch.Tensor, group_T: torch.Tensor) -> torch.Tensor:
        x_TD = x_BSD.flatten(0, 1)
        experts_TK, weights_TK, is_chosen_TK = self.gate(x_TD, owned_TE, group_T)
        token_R, slot_R = is_chosen_TK.nonzero(as_tuple=True)
        expert_R = experts_TK[token_R, slot_R]
        order_R = expert_R.argsort(stable=True)
        sizes = expert_R.bincount(minlength=len(self.experts)).tolist()
        y_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        for expert, rows in enumerate(order_R.split(sizes)):
            if len(rows):
                tokens = token_R[rows]
                weighted = self.experts[expert](x_TD[tokens]).float() * weights_TK[tokens, slot_R[rows]].unsqueeze(-1)
                y_TD.index_add_(0, tokens, weighted)
        y_BSD = y_TD.to(x_BSD.dtype).view_as(x_BSD)
        return y_BSD if self.shared_experts is None else y_BSD + self.shared_experts(x_BSD)
