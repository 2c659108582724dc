"""Which boxes of a model's tensors each rank of a layout holds, without building the model: where files are cut.

The same boxes as Megatron-Core's (a test compares them), so that a rank that loads a converted checkpoint finds what it
needs in few files. Any layout can read any cut: it is locality only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from megatron_most.checkpoint import divide_work
from megatron_most.config import Plan, RunConfig, build
from megatron_most.convert.tables import Link, Shape
from megatron_most.upstream import find_facts
from megatron_most.vocab import TokenMap

Box = tuple[Shape, Shape]
"""Start and shape."""
Place = tuple[str, Shape, Shape]
"""Name, start, shape."""


def plan_for(config: RunConfig, tokens: TokenMap) -> Plan:
    """The checked plan of a config on as few ranks as its layout needs."""
    layout = config.layout
    expert_tensor = layout.expert_tensor or (1 if layout.expert > 1 else layout.tensor)
    ranks = layout.pipeline * lcm(layout.tensor * layout.context, layout.expert * expert_tensor)
    return build(config, find_facts(ranks, "cpu"), tokens)


def held_by_rank(links: Sequence[Link], plan: Plan) -> list[list[tuple[str, Shape, Shape, Shape]]]:
    """For each rank (name, start, shape, whole) of all it holds, as divide_work wants it."""
    layout = plan.layout
    per_stage = layout.world // layout.pipeline
    held: list[list[tuple[str, Shape, Shape, Shape]]] = []
    for rank in range(layout.world):
        stage, inner = divmod(rank, per_stage)
        boxes = []
        for link in links:
            if stage not in stages_of(link, plan):
                continue
            if link.expert is None:
                parts, part = layout.tensor, inner % layout.tensor
            else:
                assert plan.moe is not None and link.layer is not None, "only its layers have experts"
                expert_rank = inner // layout.expert_tensor % layout.expert
                if plan.moe.slots(link.layer)[link.expert] // (plan.moe.num_experts // layout.expert) != expert_rank:
                    continue
                parts, part = layout.expert_tensor, inner % layout.expert_tensor
            boxes += [(link.name, *box, link.shape) for box in boxes_of(link, parts, part)]
        held.append(boxes)
    return held


def shares(links: Sequence[Link], plan: Plan) -> list[list[Place]]:
    """What each rank's file holds, every place once, in the links' order."""
    held = held_by_rank(links, plan)
    order = {link.name: number for number, link in enumerate(links)}
    return [sorted(places, key=lambda place: (order[place[0]], place)) for places in divide_work(held)]


def boxes_of(link: Link, parts: int, part: int) -> list[Box]:
    """One tensor-parallel rank's boxes: two where gate and up projection lie in one tensor, each cut by itself."""
    halves = 2 if link.row.join == "halves" else 1
    boxes = []
    for half in range(halves):
        start, shape = [0] * len(link.shape), list(link.shape)
        shape[0] //= halves
        start[0] = half * shape[0]
        if link.row.cut is not None:
            shape[link.row.cut] //= parts
            start[link.row.cut] += part * shape[link.row.cut]
        boxes.append((tuple(start), tuple(shape)))
    return boxes


def stages_of(link: Link, plan: Plan) -> set[int]:
    """Where a tensor is; tied embeddings are on the first and the last."""
    last = plan.layout.pipeline - 1
    if link.layer is not None:
        return {link.layer // (plan.config.model.num_layers // plan.layout.pipeline)}
    if link.name.startswith(("decoder.", "output_layer.")):
        return {last}
    return {0, last} if link.name.startswith("embedding.") and plan.config.model.tied_embeddings else {0}
