"""Bytes that one rank sends in an optimizer step, by what they are for and over which link, and the time they take.

Ranks are numbered as Megatron-Core does: tensor ranks lie next to each other, then context, data and pipeline; for
experts it is expert-tensor, expert, expert-data, pipeline. A ring over several nodes uses the network ports of all its
ranks in a node; in an all-to-all each rank has its own alone.

What is sent: data parallelism sends gradients in float32 (ZeRO all-reduces its buckets, also under stage 2, there
after every micro-batch) and gathers weights; tensor parallelism gathers and scatters its tokens
(sequence parallelism), 5 times in attention and 5 in each feed-forward; experts send rows there and back, forward and
backward; context ranks gather keys and values, and scatter their gradients; pipeline stages send their stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_most.config import Plan
from megatron_most.plan.activations import Sizes, layers_of
from megatron_most.plan.machine import Assumed, Machine
from megatron_most.plan.memory import setting
from megatron_most.plan.weights import Held

Link = Literal["inside", "between"]


@dataclass(frozen=True)
class Ring:
    """Ranks of one group."""

    size: int
    in_node: int
    """Those of them in one node."""

    @classmethod
    def of(cls, size: int, stride: int, gpus: int) -> Ring:
        """`stride`: between the numbers of neighbours; `gpus` of a node."""
        return cls(size, max(1, min(size, gpus // stride)))

    @property
    def link(self) -> Link:
        return "inside" if self.in_node == self.size else "between"

    @property
    def nodes(self) -> int:
        return -(-self.size // self.in_node)

    def seconds(self, sent: float, calls: float, machine: Machine, assumed: Assumed, *, all_to_all: bool) -> float:
        """`sent` by each rank to others, in `calls` collectives."""
        if self.size == 1 or not sent:
            return 0.0
        inside, between = (link * assumed.link_efficiency for link in (machine.inside, machine.between))
        waits = calls * assumed.latency_s * (self.nodes - 1 + (self.in_node - 1) / 5)
        if self.link == "inside":
            return sent / inside + waits
        if not all_to_all:
            return sent / min(inside, self.in_node * between) + waits
        near = (self.in_node - 1) / (self.size - 1)
        return max(sent * near / inside, sent * (1 - near) / between) + waits


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One kind of traffic of a step."""

    kind: str
    ring: Ring
    sent: float
    """Bytes by one rank to others."""
    seconds: float
    """If nothing else went on."""


def flows_of(
    plan: Plan, held: Held, stage: int, micro_batches: int, machine: Machine, gpus: int, assumed: Assumed
) -> list[Flow]:
    """All traffic of a rank on a stage in one optimizer step, kinds that are silent left out."""
    sizes, layout, found = Sizes.of(plan), plan.layout, []
    counts = layers_of(plan, stage)
    layers, moe_layers = sum(counts.values()), counts[True]

    def add(kind: str, ring: Ring, sent: float, calls: float, all_to_all: bool = False) -> None:
        if ring.size > 1 and sent:
            seconds = ring.seconds(sent, calls, machine, assumed, all_to_all=all_to_all)
            found.append(Flow(kind=kind, ring=ring, sent=sent, seconds=seconds))

    def cut(ring: Ring) -> float:
        return (ring.size - 1) / ring.size

    again = plan.config.recompute.granularity == "full"
    experts_again = again or (
        plan.config.recompute.granularity == "selective" and "moe" in plan.config.recompute.modules
    )
    stream = sizes.tokens * plan.config.model.hidden_size * sizes.item
    tensor = Ring.of(layout.tensor, 1, gpus)
    feeds = layers - moe_layers + moe_layers * bool(plan.config.moe.shared_hidden_size)
    times = (layers + feeds) * (7 if again else 5) + (stage == 0) * 2 + (stage == layout.pipeline - 1) * 3
    add("tensor", tensor, micro_batches * times * stream * cut(tensor), micro_batches * times)
    add(*_experts(plan, sizes, micro_batches, moe_layers * (6 if experts_again else 4), gpus), True)
    own = Ring.of(layout.expert_tensor, 1, gpus)
    rows = sizes.own_tokens * plan.config.moe.top_k * plan.config.model.hidden_size * sizes.item if plan.moe else 0.0
    trips = micro_batches * moe_layers * (6 if experts_again else 4)
    add("expert tensor", own, trips * rows * (own.size - 1), trips)
    context = Ring.of(layout.context, layout.tensor, gpus)
    pairs = micro_batches * layers * (3 if again or "core_attn" in _selected(plan) else 2)
    add("context", context, pairs * _keys_and_values(plan, sizes) * (context.size - 1), 2 * pairs)
    if layout.pipeline > 1:
        apart = layout.world // layout.pipeline
        ends = 2 - (stage == 0) - (stage == layout.pipeline - 1)
        sent = micro_batches * ends * sizes.own_tokens * plan.config.model.hidden_size * sizes.item
        add("pipeline", Ring(2, 2 if layout.world <= gpus else 1) if apart < layout.world else Ring(1, 1), sent,
            2 * micro_batches)  # fmt: skip
    for name, ring, numbers in (
        ("data", Ring.of(layout.data * layout.context, layout.tensor, gpus), held.others),
        ("expert data", Ring.of(layout.expert_data, layout.expert * layout.expert_tensor, gpus), held.experts),
    ):
        for kind, size, calls in _data(plan, numbers, micro_batches, sizes.item):
            add(f"{name}: {kind}", ring, size * cut(ring), calls)
    return found


def _experts(plan: Plan, sizes: Sizes, micro_batches: int, trips: int, gpus: int) -> tuple[str, Ring, float, float]:
    ring = Ring.of(plan.layout.expert, plan.layout.expert_tensor, gpus)
    rows = sizes.own_tokens * plan.config.moe.top_k * plan.config.model.hidden_size * sizes.item if plan.moe else 0.0
    return "experts", ring, micro_batches * trips * rows * (ring.size - 1) / ring.size, micro_batches * trips


def _selected(plan: Plan) -> tuple[str, ...]:
    return plan.config.recompute.modules if plan.config.recompute.granularity == "selective" else ()


def _keys_and_values(plan: Plan, sizes: Sizes) -> float:
    model, tensor = plan.config.model, plan.layout.tensor
    if model.attention == "mla":
        widths = model.num_heads * (model.qk_nope_head_dim + model.qk_rope_head_dim + model.v_head_dim)
    else:
        widths = 2 * (model.num_kv_heads or model.num_heads) * (model.head_dim or model.hidden_size // model.num_heads)
    return sizes.tokens * widths / tensor * sizes.item


def _data(plan: Plan, numbers: int, micro_batches: int, item: int) -> list[tuple[str, float, float]]:
    """(what, bytes before the share that stays home is taken off, calls) of `numbers` weights."""
    engine = plan.config.engine
    if engine.kind == "plain":
        return [("gradients", 2.0 * item * numbers, 1)]
    whole = setting(plan, "zero_optimization.use_multi_rank_bucket_allreduce", True) and engine.zero_stage < 3
    times = micro_batches if engine.zero_stage >= 2 else 1
    calls = times * max(1.0, numbers / setting(plan, "zero_optimization.reduce_bucket_size", 5e8))
    gradients = ("gradients", times * (2 if whole else 1) * 4.0 * numbers, calls)
    if engine.zero_stage == 3:  # by layers, for the forward and for the backward pass
        layers = plan.config.model.num_layers / plan.layout.pipeline
        return [gradients, ("weights", 2.0 * micro_batches * item * numbers, 2 * micro_batches * layers)]
    return [gradients, ("weights", float(item * numbers), 1)] if engine.zero_stage else [gradients]
