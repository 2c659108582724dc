"""The gate `masked_softmax` in one kernel each way: a softmax over the experts that the token's tag owns, its best few,
their weights, and where all that goes.

In torch that is some thirty operations forward and fifteen backward, each of a few microseconds for a GPU and as many
for the process that asks for it; megatron_most/moe/gates.py says in torch what is computed. Equal scores are settled
for the lower expert id.
"""

# T tokens, E experts by published id, S experts by slot, M tags, K experts per token

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

TOKENS = 16
"""Of a program."""


class Routed(NamedTuple):
    weights_TS: torch.Tensor
    """0 where not chosen."""
    map_TS: torch.Tensor
    """Chosen or not: exactly top_k of a token whose tag owns any, also where logits are not numbers."""
    count_TE: torch.Tensor
    """1.0 where a token that is not a pad chose."""
    scores_TE: torch.Tensor
    """The softmax; 0 outside the group."""


def routed(
    logits_TE: torch.Tensor, tags_T: torch.Tensor, is_pad_T: torch.Tensor, owns_ME: torch.Tensor,
    slot_of_E: torch.Tensor, constant_M: torch.Tensor | None, bias_E: torch.Tensor | None, top_k: int, scale: float,
    is_normalised: bool,
) -> Routed:  # fmt: skip
    """`constant_M`: what weights are multiplied by, by tag; `bias_E` shifts the choice, never the weights. Gradients
    go to the logits, from weights and scores. No tag owns fewer than top_k experts but none.
    """
    return Routed(
        *_Route.apply(logits_TE, tags_T, is_pad_T, owns_ME, slot_of_E, constant_M, bias_E, top_k, scale, is_normalised)
    )


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TE: torch.Tensor, tags_T: torch.Tensor, is_pad_T: torch.Tensor, owns_ME: torch.Tensor,
        slot_of_E: torch.Tensor, constant_M: torch.Tensor | None, bias_E: torch.Tensor | None, *settings: Any,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        ctx.set_materialize_grads(False)
        logits_TE, tags_T = logits_TE.contiguous(), tags_T.contiguous()
        (tokens, experts), (top_k, scale, is_normalised) = logits_TE.shape, settings
        weights_TS, scores_TE, count_TE = (torch.empty_like(logits_TE) for _ in range(3))
        map_TS = torch.empty_like(logits_TE, dtype=torch.bool)
        if tokens:
            _forward[(triton.cdiv(tokens, TOKENS),)](
                logits_TE, tags_T, _bytes(is_pad_T), _bytes(owns_ME), slot_of_E, constant_M, bias_E, weights_TS,
                _bytes(map_TS), count_TE, scores_TE, tokens, experts, scale, TOP_K=top_k, IS_NORMALISED=is_normalised,
                HAS_CONSTANT=constant_M is not None, HAS_BIAS=bias_E is not None, TOKENS=TOKENS,
                EXPERTS=triton.next_power_of_2(experts),
            )  # fmt: skip
        ctx.save_for_backward(scores_TE, map_TS, tags_T, slot_of_E, constant_M)
        ctx.settings = settings
        ctx.mark_non_differentiable(map_TS, count_TE)
        return weights_TS, map_TS, count_TE, scores_TE

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, of_weights_TS: torch.Tensor | None, _map: None, _count: None, of_scores_TE: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        scores_TE, map_TS, tags_T, slot_of_E, constant_M = ctx.saved_tensors
        (tokens, experts), (_, scale, is_normalised) = scores_TE.shape, ctx.settings
        of_logits_TE = torch.zeros_like(scores_TE)
        if tokens and (of_weights_TS is not None or of_scores_TE is not None):
            of_weights_TS, of_scores_TE = (x if x is None else x.contiguous() for x in (of_weights_TS, of_scores_TE))
            _backward[(triton.cdiv(tokens, TOKENS),)](
                scores_TE, _bytes(map_TS), tags_T, slot_of_E, constant_M, of_weights_TS, of_scores_TE, of_logits_TE,
                tokens, experts, scale, IS_NORMALISED=is_normalised, HAS_CONSTANT=constant_M is not None,
                HAS_WEIGHTS=of_weights_TS is not None, HAS_SCORES=of_scores_TE is not None, TOKENS=TOKENS,
                EXPERTS=triton.next_power_of_2(experts),
            )  # fmt: skip
        return (of_logits_TE, *(None,) * 9)


def _bytes(flags: torch.Tensor) -> torch.Tensor:
    return flags.contiguous().view(torch.uint8)


@triton.jit(do_not_specialize=["num_tokens"])
def _forward(
    logits, tags, is_pad, owns, slot_of, constant, bias, weights, chosen_map, count, scores, num_tokens, num_experts,
    scale, TOP_K: tl.constexpr, IS_NORMALISED: tl.constexpr, HAS_CONSTANT: tl.constexpr, HAS_BIAS: tl.constexpr,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, EXPERTS)
    is_token, is_expert = token < num_tokens, expert < num_experts
    inside = is_token[:, None] & is_expert[None, :]
    place = token.to(tl.int64)[:, None] * num_experts + expert[None, :]
    tag = tl.load(tags + token, mask=is_token, other=0)
    owned = inside & (tl.load(owns + tag[:, None] * num_experts + expert[None, :], mask=inside, other=0) != 0)
    slot = tl.load(slot_of + expert, mask=is_expert, other=0)
    nothing = float("-inf")

    own = tl.where(owned, tl.load(logits + place, mask=inside, other=0.0), nothing)
    most = tl.max(own, 1)
    most = tl.where(most == nothing, 0.0, most)  # of a token that owns none
    raised = tl.where(owned, tl.exp(own - most[:, None]), 0.0)
    total = tl.sum(raised, 1)
    score = raised / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(scores + place, score, mask=inside)

    rank = score
    if HAS_BIAS:
        rank += tl.load(bias + expert, mask=is_expert, other=0.0)[None, :]
    # What is no number must be chosen all the same: everything after counts on top_k rows, and the loss tells.
    rank = tl.where(owned, tl.where(rank == rank, rank, 0.0), nothing)
    chosen = inside & False
    for _ in range(TOP_K):
        best = tl.max(rank, 1)
        first = tl.min(tl.where(rank == best[:, None], expert[None, :], EXPERTS), 1)
        here = owned & (expert[None, :] == first[:, None])
        chosen = chosen | here
        rank = tl.where(here, nothing, rank)

    weight = tl.where(chosen, score, 0.0)
    if IS_NORMALISED:
        weight = weight / (tl.sum(weight, 1)[:, None] + 1e-20)
    weight *= scale
    if HAS_CONSTANT:
        weight *= tl.load(constant + tag, mask=is_token, other=0.0)[:, None]
    by_slot = token.to(tl.int64)[:, None] * num_experts + slot[None, :]
    tl.store(weights + by_slot, weight, mask=inside)
    tl.store(chosen_map + by_slot, chosen, mask=inside)
    pad = tl.load(is_pad + token, mask=is_token, other=1) != 0
    tl.store(count + place, (chosen & (pad[:, None] == 0)).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def _backward(
    scores, chosen_map, tags, slot_of, constant, of_weights, of_scores, of_logits, num_tokens, num_experts, scale,
    IS_NORMALISED: tl.constexpr, HAS_CONSTANT: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_SCORES: tl.constexpr,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, EXPERTS)
    is_token, is_expert = token < num_tokens, expert < num_experts
    inside = is_token[:, None] & is_expert[None, :]
    place = token.to(tl.int64)[:, None] * num_experts + expert[None, :]
    score = tl.load(scores + place, mask=inside, other=0.0)
    slope = tl.zeros([TOKENS, EXPERTS], tl.float32)
    if HAS_WEIGHTS:
        slot = tl.load(slot_of + expert, mask=is_expert, other=0)
        by_slot = token.to(tl.int64)[:, None] * num_experts + slot[None, :]
        chosen = tl.load(chosen_map + by_slot, mask=inside, other=0) != 0
        slope = tl.where(chosen, tl.load(of_weights + by_slot, mask=inside, other=0.0), 0.0) * scale
        if HAS_CONSTANT:
            tag = tl.load(tags + token, mask=is_token, other=0)
            slope *= tl.load(constant + tag, mask=is_token, other=0.0)[:, None]
        if IS_NORMALISED:
            mass = tl.sum(tl.where(chosen, score, 0.0), 1)[:, None] + 1e-20
            along = tl.sum(slope * score, 1)[:, None]  # slope is 0 where not chosen
            slope = tl.where(chosen, slope / mass - along / (mass * mass), 0.0)
    if HAS_SCORES:
        slope += tl.load(of_scores + place, mask=inside, other=0.0)
    along = tl.sum(slope * score, 1)[:, None]
    tl.store(of_logits + place, score * (slope - along), mask=inside)
