"""Whole weights by their names in one process, and each rank's part of them: how tests give every layout the same
model.

Names are Core's with layers counted from 0 over all stages and experts by published id, as checkpoints have them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from megatron_most.config import Plan
from megatron_most.model import MostModel
from megatron_most.parallel import Groups


def whole_weights(model: MostModel, plan: Plan, groups: Groups) -> dict[str, torch.Tensor]:
    """From a one-process model."""
    return {name: weight.detach().clone() for name, weight in named_weights(model, plan, groups)}


def named_weights(model: MostModel, plan: Plan, groups: Groups) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(whole name, parameter) of each parameter this rank holds."""
    for name, weight in model.named_parameters():
        words = name.split(".")
        if "layers" in words:
            words[2] = str(model.decoder.layers[int(words[2])].layer_number - 1)
        if "local_experts" in words:
            at = words.index("local_experts") + 1
            per_rank = plan.moe.num_experts // plan.layout.expert
            slot = expert_rank(plan, groups) * per_rank + int(words[at])
            words[at] = str(plan.moe.expert_at(int(words[2]))[slot])
        yield ".".join(words), weight


def expert_rank(plan: Plan, groups: Groups) -> int:
    from megatron.core import parallel_state

    return parallel_state.get_expert_model_parallel_rank()


def part_of(name: str, whole: torch.Tensor, like: torch.Tensor, groups: Groups) -> torch.Tensor:
    """This rank's part of a whole tensor: cut along the one dimension that differs."""
    if whole.shape == like.shape:
        return whole
    dim = next(d for d in range(whole.ndim) if whole.shape[d] != like.shape[d])
    ranks = whole.shape[dim] // like.shape[dim]
    from megatron.core import parallel_state

    tensor_rank = parallel_state.get_tensor_model_parallel_rank()
    rank = parallel_state.get_expert_tensor_parallel_rank() if "local_experts" in name else tensor_rank
    halves = whole.chunk(2, dim) if "linear_fc1" in name else [whole]  # gate over up: each is cut by itself
    return torch.cat([half.chunk(ranks, dim)[rank] for half in halves], dim)


@torch.no_grad()
def load_parts(model: MostModel, whole: dict[str, torch.Tensor], plan: Plan, groups: Groups) -> None:
    """Fill every parameter from whole tensors."""
    for name, weight in named_weights(model, plan, groups):
        source = whole[tied_name(name, whole)]
        weight.copy_(part_of(name, source, weight, groups).to(weight.device))


def tied_name(name: str, whole: dict[str, torch.Tensor]) -> str:
    """The last stage holds a tied embedding under the output layer's name."""
    if name == "output_layer.weight" and name not in whole:
        return "embedding.word_embeddings.weight"
    return name
