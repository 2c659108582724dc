"""How many numbers of the model each rank holds, by part, without building it.

Tensors and cuts are those of convert/: what a checkpoint's files are cut by is what ranks hold. All tensor and expert
ranks of a stage hold as many.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

from megatron_most.config import Plan
from megatron_most.convert.families import FAMILIES
from megatron_most.convert.shares import boxes_of, stages_of
from megatron_most.convert.tables import Link, link

_PARTS = (  # of our names, the first that fits
    ("embedding.", "embedding"), ("output_layer.", "head"), ("wave.", "wave"), ("norm", "norms"),
    ("self_attention.", "attention"), ("router.", "router"), ("shared_experts.", "shared experts"),
    ("experts.", "experts"), ("mlp.", "dense"),
)  # fmt: skip


@dataclass(frozen=True)
class Held:
    """Numbers in the weights of one rank."""

    parts: Counter[str]
    largest: int
    """Of one tensor."""
    layer: int
    """Of its largest layer: what ZeRO-3 has whole at once, at least."""

    @property
    def experts(self) -> int:
        """Held by one rank of each expert-parallel group; ZeRO spreads them over expert-data ranks."""
        return self.parts["experts"]

    @property
    def others(self) -> int:
        """Spread over data x context ranks."""
        return sum(self.parts.values()) - self.experts


def tensors_of(plan: Plan) -> list[Link]:
    """Every tensor of a model once, and of the routed experts the first one of each layer alone: they are alike."""
    return link(FAMILIES["most"].table, plan, experts=[0])


def held_by_stage(plan: Plan, tensors: list[Link]) -> list[Held]:
    """For each pipeline stage what one rank of it holds."""
    layout = plan.layout
    parts = [Counter[str]() for _ in range(layout.pipeline)]
    layers = [Counter[int]() for _ in range(layout.pipeline)]
    largest = [0] * layout.pipeline
    for tensor in tensors:
        if tensor.is_buffer:
            continue
        ranks = layout.tensor if tensor.expert is None else layout.expert_tensor
        size = sum(prod(shape) for _, shape in boxes_of(tensor, ranks, 0))
        part = next(part for sign, part in _PARTS if sign in tensor.name)
        times = 1 if tensor.expert is None else plan.config.moe.num_experts // layout.expert
        for stage in stages_of(tensor, plan):
            parts[stage][part] += times * size
            largest[stage] = max(largest[stage], size)
            if tensor.layer is not None:
                layers[stage][tensor.layer] += times * size
    return [Held(parts[stage], largest[stage], max(layers[stage].values())) for stage in range(layout.pipeline)]
