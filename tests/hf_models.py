"""Tiny Hugging Face models with random weights of a wide spread, so that a wrong detail shows."""

from __future__ import annotations

from typing import Any

import torch


def deepseek(**changes: Any) -> torch.nn.Module:
    """The twin of most-tiny."""
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    yarn = dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, original_max_position_embeddings=64)
    yarn |= dict(beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.707)
    settings: dict[str, Any] = dict(
        vocab_size=72, hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
        first_k_dense_replace=1, kv_lora_rank=24, q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=8,
        v_head_dim=12, topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0,
        max_position_embeddings=2560, rms_norm_eps=1e-6, rope_parameters=yarn,
    )  # fmt: skip
    return spread(DeepseekV2ForCausalLM(DeepseekV2Config(**{**settings, **changes})))


def llama(**changes: Any) -> torch.nn.Module:
    """The twin of most-tiny-dense: tied embeddings, 2 key/value heads for 4 query heads, llama3 rope."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
    settings: dict[str, Any] = dict(
        vocab_size=72, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=2560,
        rope_parameters={**rope, "original_max_position_embeddings": 8192},
    )  # fmt: skip
    return spread(LlamaForCausalLM(LlamaConfig(**{**settings, **changes})))


def qwen3_moe(**changes: Any) -> torch.nn.Module:
    """A twin of most-tiny-upcycled with other settings: normed heads, no shared experts, a dense layer, plain rope."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    settings: dict[str, Any] = dict(
        vocab_size=72, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, max_position_embeddings=2560, num_experts=8,
        num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True, mlp_only_layers=[1],
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    return spread(Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**settings, **changes})))


def spread(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        weight.data.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model.eval()
