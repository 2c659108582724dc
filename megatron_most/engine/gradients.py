"""Gradients across ranks, for an engine without ZeRO: which sums each kind of weight needs, and one norm over all of
them.

A weight is one of: expert (Core marks `allreduce = False` when experts are spread), tensor-sharded
(`tensor_model_parallel`), or whole on every tensor rank. `sequence_parallel` marks whole weights that saw only this
tensor rank's tokens. A weight that no token reached has gradient 0, not None: else Adam's moments would depend on
which rank a token happened to be on.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist

from megatron_most.parallel import Groups

Parameters = list[torch.nn.Parameter]


def is_expert(weight: torch.nn.Parameter) -> bool:
    """Held by one expert-parallel rank only."""
    return not getattr(weight, "allreduce", True)


def reduce_gradients(weights: Parameters, groups: Groups) -> None:
    """Sum every gradient over the ranks that hold the same weight and saw other tokens. All ranks call it."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    _sum((w for w in weights if getattr(w, "sequence_parallel", False)), groups.tensor)
    if groups.tied is not None:
        _sum((w for w in weights if getattr(w, "shared_embedding", False)), groups.tied)
    _sum((w for w in weights if not is_expert(w)), groups.data_context)
    _sum((w for w in weights if is_expert(w)), groups.expert_data)


def gradient_norm(weights: Parameters, groups: Groups) -> float:
    """The 2-norm of the whole gradient, each weight of the model counted once. All ranks call it."""
    device = weights[0].device
    dense, experts = (
        torch.zeros((), dtype=torch.float64, device=device),
        torch.zeros((), dtype=torch.float64, device=device),
    )
    for weight in weights:
        assert weight.grad is not None, "reduce_gradients comes first"
        square = weight.grad.double().square().sum()
        if is_expert(weight):
            experts += square
        elif getattr(weight, "shared", False):  # the last stage's copy of a tied embedding
            continue
        elif getattr(weight, "tensor_model_parallel", False) or groups.tensor.rank() == 0:
            dense += square
    dist.all_reduce(dense, group=groups.model)
    dist.all_reduce(experts, group=groups.experts)
    return float((dense + experts).sqrt())


def clip_gradients(weights: Parameters, norm: float, largest: float) -> None:
    """Scale all gradients so that their norm is at most `largest` (0: leave them)."""
    if largest and norm > largest:
        for weight in weights:
            assert weight.grad is not None, "reduce_gradients comes first"
            weight.grad.mul_(largest / (norm + 1e-6))


def _sum(weights: Iterable[torch.nn.Parameter], ranks: dist.ProcessGroup) -> None:
    """One exchange for all of them."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients or ranks.size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=ranks)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
