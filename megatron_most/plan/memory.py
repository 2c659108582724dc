"""Bytes of one rank, by part, at the moment of a step when it has most; of the stage that has most.

Two moments count: the end of a forward pass, when all activations are there and gradients come in, and the optimizer's
step. What the engines keep was counted in real ones (tests/plan/test_engines.py):

    plain    weights, gradients and moments whole on every rank; below float32 also float32 masters and their gradients
    ZeRO-0   likewise, but for the masters' gradients, which are there in its step alone
    ZeRO-1   masters and moments cut by data ranks; gradients whole, in float32
    ZeRO-2   gradients cut as well; they are sent after every micro-batch
    ZeRO-3   weights cut as well; a few are whole while they are used
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from megatron_most.config import Plan
from megatron_most.plan.activations import BYTES, Sizes, layers_of, logits_in_pieces, of_stage, saved_bytes
from megatron_most.plan.weights import Held

ROWS_OF_EXPERTS = ("router", "dispatch", "experts")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the device; `host` apart."""

    weights: float
    gradients: float
    optimizer: float
    """Masters and moments."""
    activations: float
    """Kept from forward to backward, of all micro-batches on their way; those of routed experts apart."""
    experts: float
    """Likewise what routing, dispatch and routed experts keep: it grows with imbalance."""
    working: float
    """There for a moment: logits, a layer's backward pass, what ZeRO gathers and its buckets, the optimizer's step."""
    reserve: float
    """Not ours: the driver's context, buffers of communication, fragments."""
    host: float = 0.0
    """Of this rank, in the node's memory."""
    stage: int = 0
    """The fullest stage of the pipeline, which this is."""
    modules: Mapping[str, float]
    """The activations by module, of one micro-batch."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """On the device, in order."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("host", "stage", "modules")}


@dataclass(frozen=True)
class State:
    """What an engine holds of a stage between two steps, in bytes, and what a step adds for a moment."""

    weights: float
    gradients: float
    """Between the first micro-batch and the last."""
    optimizer: float
    buffers: float
    """While gradients come in."""
    step: float
    """Once the last activation is gone: while gradients are sent, or the optimizer moves."""
    host: float = 0.0


def state_of(plan: Plan, held: Held) -> State:
    """The engine's part."""
    engine, item = plan.config.engine, BYTES[plan.config.engine.precision]
    whole = held.others + held.experts
    if engine.kind == "plain" or engine.zero_stage == 0:
        masters = 0 if item == 4 else 4
        kept = masters if engine.kind == "plain" else 0  # stage 0 has the gradients of masters in its step alone
        return State(
            weights=item * whole,
            gradients=(item + kept) * whole,
            optimizer=(8 + masters) * whole,
            buffers=0.0,
            # A sum over ranks goes through one flat copy; torch's AdamW works on all weights at once.
            step=max(
                item * max(held.others, held.experts) if plan.layout.world > 1 else 0.0, (4 + masters - kept) * whole
            ),
        )
    data = plan.layout.data * plan.layout.context
    cut = held.others / data + held.experts / plan.layout.expert_data
    return _zero(plan, held, whole, cut, item)


def _zero(plan: Plan, held: Held, whole: float, cut: float, item: int) -> State:
    engine, stage = plan.config.engine, plan.config.engine.zero_stage
    bucket = setting(plan, "zero_optimization.reduce_bucket_size", 5e8)
    buckets = 1 + bool(setting(plan, "zero_optimization.overlap_comm", stage == 3))
    # A bucket is allocated whole, in float32 under ZeRO-1; below float32 it is sent as a copy of what is in it.
    staged = bucket * (4 if stage < 2 else item) * buckets
    sent = 4 * min(bucket, whole) if item < 4 and stage >= 2 else 0.0
    weights, gradients, optimizer, live, host = item * whole, 4 * cut, 12 * cut, 0.0, 0.0
    adam = 4 * cut  # torch's works on all numbers at once
    if stage == 1:
        gradients = 4 * whole
    elif stage == 3:
        most = setting(plan, "zero_optimization.stage3_max_live_parameters", 1e9)
        most += setting(plan, "zero_optimization.stage3_prefetch_bucket_size", 5e7)
        weights, live = item * cut, item * min(most, whole)
    step = max(adam + (4 * cut - gradients if stage == 1 else 0), 4 * cut + staged if stage == 1 else 0)
    if engine.offload_optimizer:
        # Below float32 gradients of micro-batches add up on the GPU, in float32; else in one more copy on the host.
        adds_there = stage == 2 and item == 4 and plan.micro_batches > 1
        host = (16 + item) * cut + (item * cut if adds_there else 0) + item * held.largest
        gradients = {1: 4 * whole, 2: 4 * cut if item < 4 else 0.0, 3: 0.0}[stage]
        gradients += item * held.largest if stage < 3 else 0.0  # where each tensor's are summed
        optimizer, step = 0.0, 0.0
    return State(weights, gradients, optimizer, staged + sent + live, step, host)


def setting(plan: Plan, name: str, default: float) -> float:
    """A number of DeepSpeed's, where the recipe does not say another."""
    return float(plan.config.deepspeed.get(name, default))


def memory_of(plan: Plan, held: list[Held], reserve: float, imbalance: float, micro_batches: int) -> Memory:
    """Of the fullest stage."""
    sizes = Sizes.of(plan, imbalance)
    saved = saved_bytes(plan, sizes)
    found = []
    for stage in range(plan.layout.pipeline):
        state, modules = state_of(plan, held[stage]), of_stage(plan, stage, saved)
        on_their_way = min(plan.layout.pipeline - stage, micro_batches)
        kept = on_their_way * sum(modules.values())
        of_experts = on_their_way * sum(modules[name] for name in ROWS_OF_EXPERTS)
        is_last = stage == plan.layout.pipeline - 1
        passing = max(_layer_at_work(plan, sizes, stage), _head_at_work(plan, sizes) if is_last else 0.0)
        if plan.config.recompute.granularity == "full":
            run = min(plan.config.recompute.num_layers, plan.config.model.num_layers // plan.layout.pipeline)
            again = run * max(sum(saved.whole_layer[kind].values()) for kind in layers_of(plan, stage))
            # By the time layers are computed again the head's share is gone.
            head = sum(saved.head.values()) if is_last else 0.0
            passing = max(_layer_at_work(plan, sizes, stage) + again - head, _head_at_work(plan, sizes) * is_last)
        backward = kept + state.buffers + max(passing, 0.0)
        memory = Memory(
            weights=state.weights,
            gradients=state.gradients,
            optimizer=state.optimizer,
            activations=kept - of_experts,
            experts=of_experts,
            working=max(backward, state.step) - kept,
            reserve=reserve,
            host=state.host,
            stage=stage,
            modules=modules,
        )
        found.append(memory)
    return max(found, key=lambda memory: memory.total)


def _head_at_work(plan: Plan, sizes: Sizes) -> float:
    """Logits beside their float32 copy, or the copy's gradient beside its rounded one; and the head's own gradient.

    Of logits in pieces nothing was kept: one in float32, its rounded copy, and in float32 the hidden states' gradient,
    to which each piece adds.
    """
    rounded, width = sizes.item if sizes.item < 4 else 0, plan.config.model.hidden_size
    if columns := logits_in_pieces(plan, sizes):
        return sizes.tokens * ((4 + rounded) * columns + (4 + rounded) * width)
    logits = sizes.tokens * plan.tokens.vocab_size / plan.layout.tensor
    return logits * rounded + 2 * sizes.own_tokens * width * 4


def _layer_at_work(plan: Plan, sizes: Sizes, stage: int) -> float:
    """A layer's backward pass: gradients of what it is just multiplying, and rows on their way to experts and back."""
    model, moe, item = plan.config.model, plan.config.moe, sizes.item
    stream = 4 * sizes.own_tokens * model.hidden_size * item
    found = []
    for has_experts in layers_of(plan, stage):
        inner = model.dense_hidden_size if not has_experts else moe.shared_hidden_size
        work = sizes.tokens * 3 * inner / plan.layout.tensor * item
        if has_experts:
            again = 5 * (moe.expert_hidden_size or 0) / plan.layout.expert_tensor  # the activation and its gradients
            work = max(work, sizes.expert_rows * max(3 * model.hidden_size, again) * item)
        found.append(stream + work)
    return max(found)
