"""What autograd keeps of one micro-batch for its backward pass: bytes by module, from shapes alone.

The rows below are what `torch.autograd.graph.saved_tensors_hooks` sees in our model (a test compares them, module by
module): for a SwiGLU its input (2F), silu(gate) and up (F each), and its product (F), for routed experts its input
alone; for logits that are not cut their softmax, for others what makes them again. Every storage counts once.

Kernels differ by device. Attention is fused (queries, keys, values, output, and the mask of packed documents as
numbers), or a GPU lays packed documents end to end, without a mask. There and on a CPU values of another width are
widened to that of keys; on a CPU a norm keeps its quotient instead of its input, below float32 two float32 copies. The
GPU's rows are a reading of torch, which only the GPU's own run of that test can prove.
"""

# B rows, S tokens of a row, D width, F inner width, E experts, K experts a token, H heads of this rank, V vocabulary

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_most.config import Plan, columns_at_once

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_ROUTER = ("router", "dispatch", "experts", "shared_experts")


@dataclass(frozen=True)
class Sizes:
    """Of one micro-batch on one rank."""

    rows: int
    tokens: int
    """Of this context rank, whole over tensor ranks."""
    own_tokens: int
    """Of this tensor rank, as sequence parallelism cuts them."""
    length: int
    """Of a whole row."""
    expert_rows: float
    """That routed experts of this rank compute."""
    item: int
    """Bytes of a number."""
    is_fused: bool
    is_end_to_end: bool
    """Packed documents by a flash kernel, each as long as it is."""

    @classmethod
    def of(cls, plan: Plan, imbalance: float = 1.0) -> Sizes:
        """`imbalance`: rows of the expert rank that has most of them, over the mean."""
        train, layout, engine = plan.config.train, plan.layout, plan.config.engine
        is_fused = plan.facts.device == "gpu"
        tokens = train.micro_batch_size * train.sequence_length // layout.context
        own = tokens // layout.tensor
        busiest = imbalance if layout.expert > 1 else 1.0
        return cls(
            rows=train.micro_batch_size,
            tokens=tokens,
            own_tokens=own,
            length=train.sequence_length,
            expert_rows=own * plan.config.moe.top_k * layout.expert_tensor * busiest if plan.moe else 0.0,
            item=BYTES[engine.precision],
            is_fused=is_fused,
            is_end_to_end=is_fused and layout.context == 1 and engine.kernels != "plain" and engine.precision != "fp32",
        )


@dataclass(frozen=True)
class Saved:
    """Bytes by module of one stage and micro-batch."""

    embedding: Mapping[str, float]
    layer: Mapping[bool, Mapping[str, float]]
    """Of a layer that has experts, and of one that has none, with what recomputation leaves."""
    whole_layer: Mapping[bool, Mapping[str, float]]
    """The same without recomputation: what a backward pass works with for a moment."""
    head: Mapping[str, float]
    border: float
    """Where layers are recomputed whole: the input that each run of them keeps."""
    common: float
    """Likewise what all of them read: tag planes, and rotary angles where they are computed once."""


def saved_bytes(plan: Plan, sizes: Sizes) -> Saved:
    """What is kept of each kind of layer, and at both ends of the model."""
    recompute, width = plan.config.recompute, plan.config.model.hidden_size
    kinds = [False] if plan.moe is None else [False, True]
    whole = {kind: _layer(plan, sizes, kind) for kind in kinds}
    kept = whole
    if recompute.granularity == "full":
        kept = {kind: {} for kind in kinds}
    elif recompute.granularity == "selective":
        kept = {kind: _without(whole[kind], plan, sizes, kind) for kind in kinds}
    return Saved(
        embedding={"embedding": 8.0 * sizes.tokens},
        layer=kept,
        whole_layer=whole,
        head={
            "norms": sizes.own_tokens * _norm(sizes, width),
            "head": _head_loss(plan, sizes),
        },
        border=sizes.own_tokens * width * sizes.item,
        common=3.0 * sizes.tokens
        + (plan.config.model.attention == "gqa") * 4 * sizes.length / plan.layout.context * _head(plan),
    )


def logits_in_pieces(plan: Plan, sizes: Sizes) -> int | None:
    """How many columns of the logits are there at once; None: all, as always under ZeRO-3, which brings the head's
    weight for whole ones alone.
    """
    columns = plan.tokens.vocab_size // plan.layout.tensor
    at_once = columns_at_once(sizes.tokens, columns)
    return None if at_once == columns or is_zero3(plan) else at_once


def is_zero3(plan: Plan) -> bool:
    return plan.config.engine.kind == "deepspeed" and plan.config.engine.zero_stage == 3


def layers_of(plan: Plan, stage: int) -> Counter[bool]:
    """How many layers with and without experts a pipeline stage has."""
    each = plan.config.model.num_layers // plan.layout.pipeline
    dense = set(plan.config.moe.dense_layers)
    return Counter(plan.moe is not None and at not in dense for at in range(stage * each, (stage + 1) * each))


def of_stage(plan: Plan, stage: int, saved: Saved) -> Counter[str]:
    """Bytes by module that one micro-batch leaves on a stage."""
    total: Counter[str] = Counter()
    if stage == 0:
        total.update(saved.embedding)
    for has_experts, count in layers_of(plan, stage).items():
        for name, size in saved.layer[has_experts].items():
            total[name] += count * size  # type: ignore[assignment]
    if plan.config.recompute.granularity == "full":
        each = plan.config.model.num_layers // plan.layout.pipeline
        runs = -(-each // plan.config.recompute.num_layers)
        total["borders"] += runs * saved.border + saved.common  # type: ignore[assignment]
    if stage == plan.layout.pipeline - 1:
        total.update(saved.head)
    return total


def _norm(sizes: Sizes, width: int, stored: int | None = None) -> float:
    """Of one token: 1/rms, and the input, of which a wider one may be `stored`; on a CPU the quotient in its place."""
    if sizes.is_fused:
        return (stored or width) * sizes.item + 4
    return width * (4 if sizes.item == 4 else 8) + 4


def _head_loss(plan: Plan, sizes: Sizes) -> float:
    width = plan.config.model.hidden_size * sizes.item
    if logits_in_pieces(plan, sizes) is not None:
        return sizes.tokens * (width + 12)  # hidden states, gathered; labels, and the log of each token's sum
    softmax = 4 * plan.tokens.vocab_size / plan.layout.tensor
    return sizes.own_tokens * width + sizes.tokens * (softmax + 9)  # targets


def _swiglu(inner: float, item: int) -> float:
    """Both halves, silu(gate), up + 0, their product."""
    return 5 * inner * item


def _layer(plan: Plan, sizes: Sizes, has_experts: bool) -> dict[str, float]:
    config, own, item = plan.config, sizes.own_tokens, sizes.item
    width, tensor = config.model.hidden_size, plan.layout.tensor
    found = {"norms": 2 * own * _norm(sizes, width), **(_mla if config.model.attention == "mla" else _gqa)(plan, sizes)}
    if not has_experts:
        found["mlp"] = own * width * item + sizes.tokens * _swiglu(config.model.dense_hidden_size / tensor, item)
        return found
    moe = config.moe
    if moe.shared_hidden_size:
        found["shared_experts"] = sizes.tokens * _swiglu(moe.shared_hidden_size / tensor, item) + own * width * item
    # In float32 the router multiplies the very tensor that the shared experts keep; else its own float32 copy.
    copied = 4 * width * (item < 4 or not moe.shared_hidden_size)
    num, top = moe.num_experts, moe.top_k
    found["router"] = own * (copied + _choice(moe.gate, moe.aux_loss, num) + 17 * top + 5) + 4 * num * width * (
        item < 4
    )
    if moe.normalise_top_k and top > 1:
        found["router"] += own * 4 * (top + 1)
    rows = sizes.expert_rows
    sent = own * top * plan.layout.expert_tensor  # what this rank's own tokens become
    found["dispatch"] = own * plan.layout.expert_tensor * 5 * num + 8 * sent
    inner = moe.expert_hidden_size / plan.layout.expert_tensor
    # Routed experts compute their activation again, but not where ZeRO-3 has to bring weights back one by one.
    inners = 6 if is_zero3(plan) else 2
    found["experts"] = rows * (width * item + inners * inner * item + 4)
    return found


def _choice(gate: str, aux_loss: str, num: int) -> int:
    """Of one token: softmaxes over experts and their masks. The release's keeps each mask, and a balance loss of the
    other kind has a softmax of its own.
    """
    if gate == "masked_softmax":
        return (9 if aux_loss == "reference" else 4) * num
    return (17 if aux_loss == "group" else 13) * num


def _mla(plan: Plan, sizes: Sizes) -> dict[str, float]:
    model, own, item, tokens = plan.config.model, sizes.own_tokens, sizes.item, sizes.tokens
    heads, rank, rope = model.num_heads / plan.layout.tensor, model.kv_lora_rank, model.qk_rope_head_dim
    query, value = model.qk_nope_head_dim + rope, model.v_head_dim
    latents: float = (
        own * model.hidden_size * item + own * rank * item
    )  # what both down products and the up product read
    latents += own * _norm(sizes, rank, rank + rope)
    if model.q_lora_rank is not None:
        latents += own * (model.q_lora_rank * item + _norm(sizes, model.q_lora_rank))
    rotary = 4 * sizes.length / plan.layout.context * rope * item
    keys = sizes.rows * sizes.length  # of all context ranks
    if sizes.is_fused and not sizes.is_end_to_end:
        core = (tokens * query + keys * (query + value)) * heads * item + tokens * heads * 4 + _mask(sizes)
    else:  # values are widened to what the kernel takes, and its output is cut
        core = (2 * tokens + 2 * keys) * query * heads * item + tokens * heads * 4 + _mask(sizes)
    return {"latents": latents, "rotary": rotary, "core_attn": core, "proj": tokens * heads * value * item}


def _gqa(plan: Plan, sizes: Sizes) -> dict[str, float]:
    model, item, tokens, context = plan.config.model, sizes.item, sizes.tokens, plan.layout.context
    head = _head(plan)
    heads, kv_heads = (n / plan.layout.tensor for n in (model.num_heads, model.num_kv_heads or model.num_heads))
    latents: float = sizes.own_tokens * model.hidden_size * item
    if model.qk_norm:
        latents += tokens * (heads + kv_heads) * _norm(sizes, head)
    rotary = 4 * sizes.length / context * head * item
    keys = sizes.rows * sizes.length
    values = tokens * (heads + 2 * kv_heads) if context == 1 else keys * kv_heads  # values are a view of all three
    core = (tokens * heads + keys * kv_heads + values) * head * item + tokens * heads * 4 + _mask(sizes)
    return {"latents": latents, "rotary": rotary, "core_attn": core, "proj": tokens * heads * head * item}


def _head(plan: Plan) -> int:
    return plan.config.model.head_dim or plan.config.model.hidden_size // plan.config.model.num_heads


def _mask(sizes: Sizes) -> float:
    """Who sees whom, as numbers that are added: rows of packed documents have one of their own."""
    if sizes.is_end_to_end:
        return 0.0
    return sizes.tokens * sizes.length * sizes.item


def _without(found: Mapping[str, float], plan: Plan, sizes: Sizes, has_experts: bool) -> dict[str, float]:
    """What selective recomputation leaves of a layer: the inputs of what is computed again."""
    modules, kept = plan.config.recompute.modules, dict(found)
    model, item, own = plan.config.model, sizes.item, sizes.own_tokens
    entry = own * model.hidden_size * item
    if "core_attn" in modules:
        kept["core_attn"] = _operands(plan, sizes)
    if "mla_up_proj" in modules:
        if sizes.is_fused and not sizes.is_end_to_end:
            kept["core_attn"] -= min(kept["core_attn"], _operands(plan, sizes))
            kept["rotary"] = 4 * sizes.length * model.qk_rope_head_dim
        else:  # the widened values are a copy, which stays
            values = sizes.tokens * model.num_heads / plan.layout.tensor * model.v_head_dim * item
            kept["core_attn"] -= min(kept["core_attn"], _operands(plan, sizes) - values)
            kept["rotary"] = own * (model.kv_lora_rank + model.qk_rope_head_dim) * item * (item < 4)
            kept["rotary"] += 4 * sizes.length * model.qk_rope_head_dim
    if "mlp" in modules and not has_experts:
        kept["mlp"] = entry
    if "moe" in modules and has_experts:
        for name in _ROUTER:
            kept.pop(name, None)
        kept["experts"] = entry + 3 * own
    elif "shared_experts" in modules and has_experts and "shared_experts" in kept:
        kept["shared_experts"] = entry
    return kept


def _operands(plan: Plan, sizes: Sizes) -> float:
    """Queries, keys and values of this rank's heads, before context ranks gather them."""
    model, tensor = plan.config.model, plan.layout.tensor
    if model.attention == "mla":
        widths = 2 * (model.qk_nope_head_dim + model.qk_rope_head_dim) + model.v_head_dim
        return sizes.tokens * model.num_heads / tensor * widths * sizes.item
    head = _head(plan)
    kv_heads = model.num_kv_heads or model.num_heads
    return sizes.tokens * (2 * model.num_heads + 3 * kv_heads) / tensor * head * sizes.item
