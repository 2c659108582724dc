"""Seconds of one optimizer step: products at an assumed share of the peak, what of the traffic nothing hides, the
pipeline's bubble, the optimizer.

The batch is the recipe's, whatever the number of ranks: where data ranks do not divide it, rows of pads fill the last
micro-batches, and they take as long as any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from megatron_most.config import Plan, batch_rows, count_flops
from megatron_most.plan.activations import BYTES, Sizes, is_zero3, layers_of, logits_in_pieces
from megatron_most.plan.machine import Assumed, Machine
from megatron_most.plan.memory import State
from megatron_most.plan.traffic import Flow
from megatron_most.plan.weights import Held

# Of most-tiny and most-tiny with more layers and experts, views left out; a test counts them again.
LAYER_OPERATIONS, EXPERT_OPERATIONS = 284, 8
ZERO3_EXPERT_OPERATIONS = 19  # Core's own loop over them
LAYER_MODULES, EXPERT_MODULES = 23, 3
_ADAM_BYTES = 60  # read and written for each number: torch's AdamW goes over its tensors several times


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Of one optimizer step, on average over the run."""

    rows: float
    """That hold documents."""
    micro_batches: int
    """Of each data-parallel rank."""
    computed_rows: int
    tokens: float
    """That are no pads."""
    pairs: float
    """Of tokens, within a document."""

    @property
    def fillers(self) -> float:
        """Share of the computed rows that are there to fill the last micro-batches."""
        return 1 - self.rows / self.computed_rows


def batch_of(plan: Plan, assumed: Assumed) -> Batch:
    """Rows of a mean step; where documents are counted, as many as they fill."""
    train = plan.config.train
    if train.batch_counts == "documents":
        rows = train.global_batch_size / assumed.documents_per_row
    else:
        growing = sum(batch_rows(train, step) for step in range(min(train.ramp_steps, train.steps)))
        rest = train.global_batch_size * max(0, train.steps - train.ramp_steps)
        rows = (growing + rest) / train.steps
    at_once = train.micro_batch_size * plan.layout.data
    micro_batches = ceil(rows / at_once)
    tokens = rows * train.sequence_length * assumed.filled
    length = assumed.document_tokens or train.sequence_length * assumed.filled / assumed.documents_per_row
    return Batch(
        rows=rows, micro_batches=micro_batches, computed_rows=micro_batches * at_once, tokens=tokens,
        pairs=tokens * length / 2,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds by part; they add up."""

    compute: float
    """All micro-batches of the slowest stage, with what is computed twice; of that, the share of filler rows is in
    Batch.
    """
    bubble: float
    """The same stage, waiting for the pipeline to fill and to drain."""
    exposed: dict[str, float]
    """Traffic that nothing hides, by kind."""
    optimizer: float

    @property
    def total(self) -> float:
        return self.compute + self.bubble + sum(self.exposed.values()) + self.optimizer


def compute_seconds(plan: Plan, held: list[Held], machine: Machine, assumed: Assumed) -> float:
    """Of one micro-batch, forward and backward, on the slowest stage."""
    sizes, model, moe = Sizes.of(plan), plan.config.model, plan.config.moe
    rate = assumed.efficiency * (machine.peak if sizes.item < 4 else machine.peak_fp32)
    flops, head = count_flops(plan), 2 * plan.tokens.vocab_size * model.hidden_size
    expert = 6 * moe.top_k * moe.expert_hidden_size * model.hidden_size if plan.moe else 0
    dense = 6 * model.dense_hidden_size * model.hidden_size
    shared = 6 * moe.shared_hidden_size * model.hidden_size
    kinds = [layers_of(plan, stage) for stage in range(plan.layout.pipeline)]
    dense_layers, moe_layers = (sum(kind[has] for kind in kinds) for has in (False, True))
    rest = flops.per_token - head - dense_layers * dense - moe_layers * (shared + expert)  # attention and routers
    attention = rest / model.num_layers
    # Masks are handed to the kernel as such, so it multiplies what it then masks.
    pairs = flops.per_pair / model.num_layers * sizes.length
    slowest = 0.0
    for stage, kind in enumerate(kinds):
        layers = sum(kind.values())
        forward = layers * (attention + pairs) + kind[False] * dense + kind[True] * shared
        forward *= sizes.tokens / plan.layout.tensor
        busiest = assumed.imbalance if plan.layout.expert > 1 else 1.0
        rows = kind[True] * expert * sizes.own_tokens * busiest
        again = _again(plan, forward, rows, layers * pairs * sizes.tokens / plan.layout.tensor)
        seconds = (3 * forward + again[0]) / rate
        read = 3 * held[stage].experts * sizes.item / (machine.hbm * assumed.hbm_efficiency)  # few rows: weights count
        seconds += max((3 * rows + again[1]) / rate, read)
        if stage == plan.layout.pipeline - 1:
            products = 3 if logits_in_pieces(plan, sizes) is None else 4  # in pieces they are made a second time
            seconds += products * head * sizes.tokens / plan.layout.tensor / rate
        slowest = max(slowest, seconds, _host_seconds(plan, kind, assumed))
    return slowest


def _host_seconds(plan: Plan, kind: Mapping[bool, int], assumed: Assumed) -> float:
    """What a micro-batch takes the host, which the GPU waits for where its own work is less."""
    layers, experts = sum(kind.values()), 0
    if plan.moe is not None:
        experts = kind[True] * plan.moe.num_experts // plan.layout.expert
    of_expert = ZERO3_EXPERT_OPERATIONS if is_zero3(plan) else EXPERT_OPERATIONS
    operations: float = LAYER_OPERATIONS * layers + of_expert * experts
    if plan.config.recompute.granularity == "full":
        operations *= 1.5
    seconds = operations * assumed.operation_s
    if is_zero3(plan):
        seconds += (LAYER_MODULES * layers + EXPERT_MODULES * experts) * assumed.zero3_module_s
    return seconds


def _again(plan: Plan, forward: float, rows: float, attention: float) -> tuple[float, float]:
    """Products that recomputation repeats: outside of routed experts, and in them."""
    recompute = plan.config.recompute
    if recompute.granularity == "none":
        return 0.0, 0.0
    if recompute.granularity == "full":
        return forward, rows
    others = attention * ("core_attn" in recompute.modules)
    others += (forward - attention) / 2 * bool({"mlp", "moe", "shared_experts", "mla_up_proj"} & {*recompute.modules})
    return others, rows * ("moe" in recompute.modules)


def step_of(
    plan: Plan, held: list[Held], state: State, flows: list[Flow], batch: Batch, machine: Machine, assumed: Assumed
) -> Step:
    """Of a mean step."""
    each = compute_seconds(plan, held, machine, assumed)
    exposed: dict[str, float] = {}
    engine = plan.config.engine
    overlaps = bool(plan.config.deepspeed.get("zero_optimization.overlap_comm", engine.zero_stage == 3))
    times = batch.micro_batches if engine.zero_stage >= 2 else 1
    hides = assumed.overlap * 2 / 3 * each * times if engine.kind == "deepspeed" and overlaps else 0.0
    for flow in flows:
        seconds = flow.seconds
        if "data:" in flow.kind and ("gradients" in flow.kind or engine.zero_stage == 3):
            hidden = min(seconds, hides)
            seconds, hides = seconds - hidden, hides - hidden
        exposed[flow.kind] = seconds
    return Step(
        compute=batch.micro_batches * each,
        bubble=(plan.layout.pipeline - 1) * each,
        exposed={kind: seconds for kind, seconds in exposed.items() if seconds},
        optimizer=_optimizer_seconds(plan, held, state, batch, machine, assumed),
    )


def _optimizer_seconds(
    plan: Plan, held: list[Held], state: State, batch: Batch, machine: Machine, assumed: Assumed
) -> float:
    engine, item = plan.config.engine, BYTES[plan.config.engine.precision]
    if not engine.offload_optimizer:
        numbers = state.optimizer / (8 if engine.kind == "plain" and item == 4 else 12)
        return _ADAM_BYTES * numbers / (machine.hbm * assumed.hbm_efficiency)
    numbers = state.host / (16 + item)
    sends = (batch.micro_batches if engine.zero_stage >= 2 else 1) * item + item
    return numbers * (sends / machine.host + _ADAM_BYTES / assumed.host_bandwidth)
