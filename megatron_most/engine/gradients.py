"""Gradients across ranks: which sums each kind of weight needs without ZeRO, and norms over all of them, by part.

A weight is one of: expert (Core marks `allreduce = False` when experts are spread), tensor-sharded
(`tensor_model_parallel`), or whole on every tensor rank. `sequence_parallel` marks whole weights that saw only this
tensor rank's tokens. A weight that no token reached has gradient 0, not None: else Adam's moments would depend on
which rank a token happened to be on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

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


def gradient_squares(
    fragments: Iterable[tuple[torch.nn.Parameter, torch.Tensor]],
    part_of: Mapping[torch.nn.Parameter, int],
    num_parts: int,
    groups: Groups,
    device: torch.device,
) -> torch.Tensor:
    """The square of the gradient's norm by part of the model, each weight of it counted once. All ranks call it.

    `fragments`: pieces of reduced gradients, such that all ranks together bring every number that a tensor rank holds
    once. What tensor ranks hold alike is counted on the first of them.
    """
    squares = torch.zeros(num_parts, dtype=torch.float64, device=device)
    parts, counted = [], []
    for weight, fragment in fragments:
        if getattr(weight, "shared", False):  # the last stage's copy of a tied embedding
            continue
        if is_expert(weight) or getattr(weight, "tensor_model_parallel", False) or groups.tensor.rank() == 0:
            parts.append(part_of[weight])
            counted.append(fragment)
    if counted:
        # A CPU adds up one number after another; a GPU does not, and in float64 would copy each fragment first.
        is_cpu = counted[0].device.type == "cpu"
        norms = torch._foreach_norm(counted, 2, dtype=torch.float64 if is_cpu else torch.float32)
        norms_N = torch.stack([norm.to(device) for norm in norms]).double()
        squares.index_add_(0, torch.tensor(parts, device=device), norms_N.square())
    dist.all_reduce(squares)
    return squares


def whole_gradients(weights: Parameters, groups: Groups) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """After reduce_gradients: those of the first of the ranks that hold the same."""
    for weight in weights:
        assert weight.grad is not None, "reduce_gradients comes first"
        if (groups.expert_data if is_expert(weight) else groups.data_context).rank() == 0:
            yield weight, weight.grad


def clip_gradients(weights: Parameters, norm: float, largest: float) -> None:
    """Scale all gradients so that their norm is at most `largest` (0: leave them)."""
    if largest and norm > largest and weights:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        assert len(gradients) == len(weights), "reduce_gradients comes first"
        torch._foreach_mul_(gradients, largest / (norm + 1e-6))


def _sum(weights: Iterable[torch.nn.Parameter], ranks: dist.ProcessGroup) -> None:
    """One exchange for all of them."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients or ranks.size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=ranks)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
