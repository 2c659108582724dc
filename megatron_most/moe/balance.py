"""What keeps experts busy: auxiliary losses, the router z-loss, and the bias on the choice.

Every loss here is a SUM over the micro-batch's sequences of a per-sequence mean; the engine divides by the number of
sequences in the global batch, so no layout, micro-batch size or filler row changes it. Counts are summed over the ranks
that hold pieces of the same sequences (tensor x context parallel); each rank keeps the gradient of its own tokens.

    group      sum_g (n_g/n) * E_g/(K n_g^2) * sum_{e in g} count_e * sum_{t in g} p_te     p: softmax inside the group
    reference  E/(K n^2) * sum_e count_e * sum_t q'_te                                   q': masked, not renormalised
"""

# S sequence, B batch, E routed experts, G expert groups, K experts per token

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist

Group = dist.ProcessGroup | None


def group_loss(
    probs_SBE: torch.Tensor, count_SBE: torch.Tensor, owns_GE: torch.Tensor, top_k: int,
    scope: Literal["sequence", "batch"], ranks: Group,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Balance inside each group, weighted by the group's share of tokens: B at perfect balance for any text/audio
    ratio.

    `probs_SBE` and `count_SBE` are 0 for tokens that do not count. A group without tokens adds nothing.
    Gives the loss and the number of sequences it is a sum over.
    """
    count_BE, probs_BE = _sum_over(count_SBE.sum(0), ranks), probs_SBE.sum(0)
    sequences = _num_filled(count_BE.sum(-1))
    if scope == "batch":
        count_BE, probs_BE = count_BE.sum(0, keepdim=True), probs_BE.sum(0, keepdim=True)
    owns = owns_GE.to(probs_BE.dtype)
    slots_BG = count_BE @ owns.T  # K n_g
    tokens_B1 = slots_BG.sum(-1, keepdim=True).clamp(min=1.0) / top_k
    size_G = owns.sum(-1)
    per_expert_BE = (size_G / (slots_BG.clamp(min=1.0) * tokens_B1)) @ owns  # E_g / (K n_g n)
    loss = (per_expert_BE * count_BE * probs_BE).sum()
    return (loss * sequences if scope == "batch" else loss), sequences


def reference_loss(
    scores_SBE: torch.Tensor, count_SBE: torch.Tensor, counted_SB: torch.Tensor, top_k: int,
    scope: Literal["sequence", "batch"], ranks: Group,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The release's loss; `counted_SB` says which tokens belong to its means (all of them, as released, or the routed
    ones). Gives the loss and the number of sequences it is a sum over.
    """
    count_BE, scores_BE, tokens_B = count_SBE.sum(0), scores_SBE.sum(0), counted_SB.sum(0).to(scores_SBE.dtype)
    counts = _sum_over(torch.cat([count_BE, tokens_B.unsqueeze(-1)], -1), ranks)
    sequences = _num_filled(counts[:, -1])
    if scope == "batch":
        counts, scores_BE = counts.sum(0, keepdim=True), scores_BE.sum(0, keepdim=True)
    count_BE, tokens_B1 = counts[:, :-1], counts[:, -1:].clamp(min=1.0)
    loss = (count_BE * scores_BE * (count_BE.size(-1) / (top_k * tokens_B1.square()))).sum()
    return (loss * sequences if scope == "batch" else loss), sequences


def z_loss(
    log_sum_SB: torch.Tensor, counted_SB: torch.Tensor, scope: Literal["sequence", "batch"], ranks: Group
) -> torch.Tensor:
    """Mean over counted tokens of (logsumexp of the logits the gate's softmax sees) squared."""
    squares_B = log_sum_SB.square().masked_fill(~counted_SB, 0.0).sum(0)
    tokens_B = _sum_over(counted_SB.sum(0).to(squares_B.dtype), ranks)
    sequences = _num_filled(tokens_B)
    if scope == "batch":
        squares_B, tokens_B = squares_B.sum(0, keepdim=True), tokens_B.sum(0, keepdim=True)
    loss = (squares_B / tokens_B.clamp(min=1.0)).sum()
    return loss * sequences if scope == "batch" else loss


def moved_bias(bias_E: torch.Tensor, load_E: torch.Tensor, owns_GE: torch.Tensor, rate: float) -> torch.Tensor:
    """The choice bias after a step: up by `rate` for experts below their own group's mean load, down above it.

    The mean is the group's, not the layer's: with 10 % audio every audio expert is below the layer's mean. A group that
    saw no token stays as it is (sign 0).
    """
    owns = owns_GE.to(load_E.dtype)
    mean_E = (owns @ load_E / owns.sum(-1)) @ owns
    return bias_E + rate * (mean_E - load_E).sign()


def _num_filled(tokens_B: torch.Tensor) -> torch.Tensor:
    """Sequences with a token that counts: what "batch" stands for, so that a filler row weighs nothing there either."""
    return (tokens_B > 0).sum()


def _sum_over(counts: torch.Tensor, ranks: Group) -> torch.Tensor:
    """Counts carry no gradient; summed in place over the ranks that share the sequences."""
    counts = counts.detach().contiguous()
    if ranks is not None and ranks.size() > 1:
        dist.all_reduce(counts, group=ranks)
    return counts
