"""How many parameters a plan has, how many products it takes, and how many rows a step has, by arithmetic. Tests count
real models against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_most.config.plan import Plan
from megatron_most.config.schema import TrainConfig


@dataclass(frozen=True)
class Size:
    """Parameters; embeddings and head included, as backbones publish them."""

    total: int
    active: int


def count_parameters(plan: Plan) -> Size:
    """An expert's three matrices count once in total per expert, and top_k times in active."""
    model, moe, width = plan.config.model, plan.config.moe, plan.config.model.hidden_size
    embeddings = plan.tokens.vocab_size * width * (1 if model.tied_embeddings else 2)
    wave = (model.wave_size + 1) * width if model.wave_size else 0
    frame, inner = model.wave_size // model.wave_stack, model.wave_inner_size
    wave += len(model.wave_layers) * (4 * frame * (frame + 1) + inner * (2 * frame + 1) + frame + 4 * frame)
    everywhere = model.num_layers * (_attention(plan) + 2 * width) + width + embeddings + wave
    dense_layers = len(set(moe.dense_layers)) if moe.num_experts else model.num_layers
    everywhere += dense_layers * 3 * width * model.dense_hidden_size
    layers, expert = model.num_layers - dense_layers, 3 * width * moe.expert_hidden_size
    everywhere += layers * (moe.num_experts * width + 3 * width * moe.shared_hidden_size)  # router and shared experts
    return Size(total=everywhere + layers * moe.num_experts * expert, active=everywhere + layers * moe.top_k * expert)


@dataclass(frozen=True)
class Flops:
    """Additions and multiplications of a forward pass that the model asks for, in matrix products alone.

    A token counts with top_k experts, also a marker that uses the shared ones alone. A pair is a token and one that it
    sees: itself and those before it in its document. Pads count nowhere, nor does what is computed twice or masked.
    """

    per_token: int
    per_pair: int

    def of_step(self, tokens: int, pairs: int) -> int:
        """With the backward pass, which takes two products for each."""
        return 3 * (self.per_token * tokens + self.per_pair * pairs)


def count_flops(plan: Plan) -> Flops:
    """For one token and one pair, in all layers and the head."""
    model, moe, width = plan.config.model, plan.config.moe, plan.config.model.hidden_size
    dense_layers = len(set(moe.dense_layers)) if moe.num_experts else model.num_layers
    norms = 0 if model.attention == "gqa" else model.kv_lora_rank + (model.q_lora_rank or 0)
    products = model.num_layers * (_attention(plan) - norms) + (plan.tokens.vocab_size + model.wave_size) * width
    products += dense_layers * 3 * width * model.dense_hidden_size
    per_layer = moe.num_experts + 3 * (moe.top_k * moe.expert_hidden_size + moe.shared_hidden_size)
    products += (model.num_layers - dense_layers) * per_layer * width
    if model.attention == "gqa":
        head = 2 * (model.head_dim or width // model.num_heads)
    else:
        head = model.qk_nope_head_dim + model.qk_rope_head_dim + model.v_head_dim
    return Flops(per_token=2 * products, per_pair=2 * model.num_layers * model.num_heads * head)


def batch_rows(train: TrainConfig, step: int) -> int:
    """Rows of a step's batch: ramp_from at step 0, growing evenly to global_batch_size after ramp_steps."""
    if step >= train.ramp_steps:
        return train.global_batch_size
    return train.ramp_from + (train.global_batch_size - train.ramp_from) * step // train.ramp_steps


def _attention(plan: Plan) -> int:
    model = plan.config.model
    width, heads = model.hidden_size, model.num_heads
    if model.attention == "gqa":
        head = model.head_dim or width // heads
        norms = 2 * head if model.qk_norm else 0
        return width * head * (2 * heads + 2 * (model.num_kv_heads or heads)) + norms
    query_head = model.qk_nope_head_dim + model.qk_rope_head_dim
    queries = width * heads * query_head
    if model.q_lora_rank is not None:
        queries = model.q_lora_rank * (width + 1 + heads * query_head)  # down, norm, up
    latents = width * (model.kv_lora_rank + model.qk_rope_head_dim) + model.kv_lora_rank
    keys_values = model.kv_lora_rank * heads * (model.qk_nope_head_dim + model.v_head_dim)
    return queries + latents + keys_values + heads * model.v_head_dim * width
