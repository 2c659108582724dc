"""Plan -> Megatron-Core's TransformerConfig: every setting we rely on, in one place.

Core's defaults are not DeepSeek's: mscale_all_dim, original_max_position_embeddings, layernorm_epsilon, pre-softmax
and the latent norms each give silently other logits when left out (3.1, 3.6, 2e-3 and 1.8 off in a tiny model).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from megatron_most.config import Plan
from megatron_most.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def core_config(plan: Plan) -> TransformerConfig:
    """The upstream config of a plan; also refuses [core] settings that Core does not have."""
    model, layout, precision = plan.config.model, plan.layout, plan.config.engine.precision
    settings: dict[str, Any] = {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_heads,
        "ffn_hidden_size": model.dense_hidden_size,
        "add_bias_linear": False,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.norm_eps,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": model.init_std,
        "apply_rope_fusion": False,
        "bias_activation_fusion": False,
        "params_dtype": DTYPES[precision],
        "pipeline_dtype": DTYPES[precision],
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "tensor_model_parallel_size": layout.tensor,
        "sequence_parallel": layout.tensor > 1,
        "pipeline_model_parallel_size": layout.pipeline,
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.expert_tensor,
        "gradient_accumulation_fusion": False,
        "calculate_per_token_loss": True,  # losses are sums; the engine divides, see engine/schedule.py
        **_attention(plan),
        **_experts(plan),
        **_recompute(plan),
    }
    kind = MLATransformerConfig if model.attention == "mla" else TransformerConfig
    known = {field.name for field in fields(kind)}
    for name, value in plan.config.core.items():
        if name not in known:
            raise ConfigError(f"core.{name}", value, "this Megatron-Core has no such setting", "check its spelling")
    try:
        return kind(**{**settings, **plan.config.core})
    except (ValueError, AssertionError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            "core", plan.config.core, f"Megatron-Core refuses the configuration ({error})", "change the settings named"
        ) from error


def _attention(plan: Plan) -> dict[str, Any]:
    model = plan.config.model
    if model.attention == "gqa":
        return {
            "num_query_groups": model.num_kv_heads or model.num_heads,
            "kv_channels": model.head_dim or model.hidden_size // model.num_heads,
            "qk_layernorm": model.qk_norm,
        }
    return {
        "q_lora_rank": model.q_lora_rank,
        "kv_lora_rank": model.kv_lora_rank,
        "qk_head_dim": model.qk_nope_head_dim,
        "qk_pos_emb_head_dim": model.qk_rope_head_dim,
        "v_head_dim": model.v_head_dim,
        "qk_layernorm": False,  # the norms on the latents are in MendedMLA, see there
        "rope_type": "yarn" if model.rope == "yarn" else "rope",
        "rotary_base": model.rope_theta,
        "rotary_scaling_factor": model.rope_factor if model.rope == "yarn" else 1.0,
        "original_max_position_embeddings": model.rope_original_length,
        "beta_fast": model.rope_beta_fast,
        "beta_slow": model.rope_beta_slow,
        "mscale": model.rope_mscale,
        "mscale_all_dim": model.rope_mscale_all_dim,
        "rotary_interleaved": False,  # MLA takes adjacent pairs by itself
    }


def _experts(plan: Plan) -> dict[str, Any]:
    if plan.moe is None:
        return {}
    config = plan.config.moe
    return {
        "num_moe_experts": plan.moe.num_experts,
        "moe_router_topk": plan.moe.top_k,
        "moe_ffn_hidden_size": config.expert_hidden_size,
        "moe_shared_expert_intermediate_size": config.shared_hidden_size or None,
        "moe_layer_freq": [0 if layer in config.dense_layers else 1 for layer in range(plan.config.model.num_layers)],
        "moe_router_pre_softmax": True,
        "moe_router_load_balancing_type": "none",  # our router balances by itself
        "moe_aux_loss_coeff": 0.0,
        "moe_token_dispatcher_type": plan.moe.dispatcher,
        "moe_router_dtype": "fp32",
    }


def _recompute(plan: Plan) -> dict[str, Any]:
    recompute = plan.config.recompute
    if recompute.granularity == "none":
        return {}
    if recompute.granularity == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": recompute.method,
            "recompute_num_layers": recompute.num_layers,
        }
    return {"recompute_granularity": "selective", "recompute_modules": list(recompute.modules)}
