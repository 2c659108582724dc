"""Qwen3-MoE: grouped-query attention with normed heads, routed experts, none shared, no modalities."""

from __future__ import annotations

from typing import Any

from megatron_most.config import Plan
from megatron_most.convert.families import fields
from megatron_most.convert.families.rows import DENSE, EXPERTS, FRAME, GQA, OWN_BUFFERS
from megatron_most.convert.settings import Settings

TABLE = (*FRAME, *GQA, *DENSE, *EXPERTS, *OWN_BUFFERS)


def read(settings: Settings) -> fields.Changes:
    settings.one_of("use_sliding_window", [False], False)
    settings.get("sliding_window"), settings.get("max_window_layers")  # of no effect without it
    name = "num_local_experts" if settings.get("num_experts") is None else "num_experts"
    experts = settings.integer(name, most=fields.MOST_EXPERTS)
    layers = settings.integer("num_hidden_layers", most=fields.MOST_LAYERS)
    every = settings.integer("decoder_sparse_step", 1)
    dense = set(settings.integers("mlp_only_layers") or []) | {n for n in range(layers) if (n + 1) % every}
    if (normalised := settings.flag("norm_topk_prob", False)) and settings.integer("num_experts_per_tok") == 1:
        raise settings.wrong("norm_topk_prob", "a single expert's weight is not normalised to 1 here")
    return {
        **fields.read_frame(settings), **fields.read_gqa(settings), **fields.without_modalities(experts),
        "model.qk_norm": True,
        "moe.num_experts": experts,
        "moe.top_k": settings.integer("num_experts_per_tok"),
        "moe.expert_hidden_size": settings.integer("moe_intermediate_size"),
        "moe.shared_hidden_size": 0,
        "moe.dense_layers": sorted(dense),
        "moe.normalise_top_k": normalised,
    }  # fmt: skip


def write(plan: Plan) -> dict[str, Any]:
    config, moe = plan.config, plan.config.moe
    fields.refuse(
        "qwen3_moe",
        {
            "has experts": not moe.num_experts,
            "norms query and key heads (model.qk_norm)": not config.model.qk_norm,
            "has no shared experts": moe.shared_hidden_size > 0,
            "does not scale the routed output (moe.scale)": moe.scale != 1,
            "has no routing groups": moe.routing_groups is not None,
            "has no bias on the choice of experts (moe.bias_rate)": moe.bias_rate > 0,
            "has no place for continuous speech (model.wave_size)": config.model.wave_size > 0,
        },
    )
    return {
        **fields.write_frame(plan), **fields.write_gqa(plan), **fields.old_rope(plan),
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.expert_hidden_size,
        "mlp_only_layers": sorted(moe.dense_layers),
        "decoder_sparse_step": 1,
        "norm_topk_prob": moe.normalise_top_k and moe.top_k > 1,
        "use_sliding_window": False,
    }  # fmt: skip
