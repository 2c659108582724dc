"""Which experts each token gets, and with which weights: the two gates, as functions of logits and ownership.

    masked_softmax  p = softmax over the token's group;  w = p of the top k, normalised on demand, * scale * c[group]
    reference       q = softmax over all experts, then 0 outside the group;  w = q * scale, or q / (sum q + 1e-20)

`reference` is the MoST release's rule to the letter: normalising drops `scale`, top-1 never normalises, and
group-limited routing ranks its runs of experts by their UNMASKED maximum. Ids are published ids. All arithmetic is
float32.
"""

# T tokens, E routed experts, K experts per token, R routing groups (runs of ids), G expert groups

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from megatron_most.config import MoEPlan


@dataclass(frozen=True)
class Choice:
    """What the gate decided."""

    experts_TK: torch.Tensor
    """Published ids; a slot that is not chosen holds an arbitrary id."""
    weights_TK: torch.Tensor
    """0 where not chosen."""
    is_chosen_TK: torch.Tensor
    """False for every slot of a shared-only token, and for slots that found no candidate."""
    scores_TE: torch.Tensor
    """What the weights were taken from: p or q' of the plan's gate, in published ids."""


class Fences(NamedTuple):
    """What keeps tokens inside their groups, as numbers to add and multiply by: on a CPU a tenth of a mask's time."""

    hard_TE: torch.Tensor
    """-inf where an expert is not owned, else 0."""
    soft_TE: torch.Tensor
    """The same, but 0 everywhere for a token that owns none, so that a softmax is a number."""
    some_T1: torch.Tensor
    """1 for a token that owns any, else 0."""


def fences(owned_TE: torch.Tensor, dtype: torch.dtype) -> Fences:
    some_T1 = owned_TE.any(-1, keepdim=True)
    hard_TE = torch.zeros_like(owned_TE, dtype=dtype).masked_fill_(~owned_TE, float("-inf"))
    return Fences(hard_TE, hard_TE.masked_fill(~some_T1, 0.0), some_T1.to(dtype))


def in_group_softmax(logits_TE: torch.Tensor, owned_TE: torch.Tensor) -> torch.Tensor:
    """p_te: softmax over the owned experts; all 0 for a token that owns none (never NaN, gradients included)."""
    return _in_group(logits_TE, fences(owned_TE, logits_TE.dtype))


def masked_full_softmax(logits_TE: torch.Tensor, owned_TE: torch.Tensor) -> torch.Tensor:
    """q'_te: softmax over all experts, then 0 outside the group; a row sums to the token's in-group mass."""
    return logits_TE.softmax(-1).masked_fill(~owned_TE, 0.0)


def choose(
    logits_TE: torch.Tensor,
    owned_TE: torch.Tensor,
    constant_T: torch.Tensor | None,
    bias_E: torch.Tensor | None,
    plan: MoEPlan,
    fenced: Fences | None = None,
) -> Choice:
    """Apply the plan's gate. `constant_T` is each token's saved group constant (masked_softmax), `bias_E` shifts the
    choice of experts, never their weights. `fenced`: those of `owned_TE`, where they have been made before.
    """
    fenced = fenced or fences(owned_TE, logits_TE.dtype)
    if plan.gate == "masked_softmax":
        scores_TE = _in_group(logits_TE, fenced)
        run_scores_TE = scores_TE
    else:
        scores_TE = masked_full_softmax(logits_TE, owned_TE)
        run_scores_TE = logits_TE.softmax(-1)  # unmasked, as released
    # Rank with -inf outside the group: an owned score that underflowed to 0 must still beat a foreign one.
    ranking_TE = scores_TE.detach() + fenced.hard_TE
    if bias_E is not None:
        ranking_TE += bias_E
    if plan.routing_groups_kept < plan.routing_groups:
        ranking_TE = _limit_to_runs(
            ranking_TE, run_scores_TE.detach(), owned_TE, plan.routing_groups, plan.routing_groups_kept
        )
    best_TK, experts_TK = ranking_TE.topk(plan.top_k, dim=-1)
    is_chosen_TK = best_TK != float("-inf")  # what is no number is chosen too, or nobody would be told
    weights_TK = scores_TE.gather(-1, experts_TK)  # 0 outside the group
    if plan.routing_groups_kept < plan.routing_groups:
        weights_TK = weights_TK.masked_fill(~is_chosen_TK, 0.0)
    if plan.is_normalised:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    if plan.scale != 1.0 and (plan.gate == "masked_softmax" or not plan.is_normalised):
        weights_TK = weights_TK * plan.scale
    if constant_T is not None:
        weights_TK = weights_TK * constant_T.unsqueeze(-1)
    return Choice(experts_TK, weights_TK, is_chosen_TK, scores_TE)


def _in_group(logits_TE: torch.Tensor, fenced: Fences) -> torch.Tensor:
    return (_InGroup.apply if torch.is_grad_enabled() else _softmax)(logits_TE, fenced)


def _softmax(logits_TE: torch.Tensor, fenced: Fences) -> torch.Tensor:
    return (logits_TE + fenced.soft_TE).softmax(-1).mul_(fenced.some_T1)


class _InGroup(torch.autograd.Function):
    """A softmax's gradient is 0 wherever the softmax is: one kernel backward in place of three."""

    @staticmethod
    def forward(ctx: Any, logits_TE: torch.Tensor, fenced: Fences) -> torch.Tensor:
        p_TE = _softmax(logits_TE, fenced)
        ctx.save_for_backward(p_TE)
        return p_TE

    @staticmethod
    def backward(ctx: Any, slope_TE: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (p_TE,) = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(slope_TE, p_TE, -1, p_TE.dtype), None


def _limit_to_runs(
    ranking_TE: torch.Tensor, run_scores_TE: torch.Tensor, owned_TE: torch.Tensor, runs: int, kept: int
) -> torch.Tensor:
    """Group-limited routing: only experts in the `kept` best of `runs` equal runs of ids stay in the ranking.

    A run scores its best expert; one without any expert of the token's modality comes last.
    """
    in_runs = (ranking_TE.size(0), runs, -1)
    has_own_TR = owned_TE.view(in_runs).any(-1)
    best_TR = run_scores_TE.reshape(in_runs).amax(-1).masked_fill(~has_own_TR, -1.0)
    kept_TR = torch.zeros_like(has_own_TR).scatter(1, best_TR.topk(kept, dim=-1).indices, True)
    return ranking_TE.view(in_runs).masked_fill(~kept_TR.unsqueeze(-1), float("-inf")).view_as(ranking_TE)
