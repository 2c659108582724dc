"""MostForCausalLM beside our Core model: configurations from a plan, spread weights, weights carried across.

The converter that users run has rows of its own; here tests/hf_bridge.py carries the weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from megatron_most.config import Plan, build, load_recipe, replace
from megatron_most.config.plan import Facts
from megatron_most.convert.most_hf import MostConfig, MostForCausalLM
from tests.harness import run_ranks
from tests.hf_bridge import whole_from_hf

ALONE = Facts(world_size=1, device="cpu", core_version=(0, 16))


def plan_of(recipe: str = "most-tiny", changes: dict[str, Any] | None = None) -> Plan:
    return build(replace(load_recipe(recipe), changes or {}), ALONE)


def twin_config(plan: Plan, **changes: Any) -> MostConfig:
    """The configuration that says what a plan says."""
    model, moe, config = plan.config.model, plan.moe, plan.config.moe
    assert moe is not None
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_theta}
    if model.rope == "yarn":
        rope |= dict(rope_type="yarn", factor=model.rope_factor, beta_fast=model.rope_beta_fast)
        rope |= dict(beta_slow=model.rope_beta_slow, original_max_position_embeddings=model.rope_original_length)
        rope |= dict(mscale=model.rope_mscale, mscale_all_dim=model.rope_mscale_all_dim)
    if model.rope == "llama3":
        rope |= dict(rope_type="llama3", factor=model.rope_factor, low_freq_factor=1.0, high_freq_factor=4.0)
        rope |= dict(original_max_position_embeddings=model.rope_original_length)
    groups = [
        {"tags": [tag for tag, of in enumerate(moe.group_of_tag) if of == group], "experts": list(experts)}
        for group, experts in enumerate(moe.groups)
    ]
    settings: dict[str, Any] = dict(
        vocab_size=plan.tokens.vocab_size, hidden_size=model.hidden_size, intermediate_size=model.dense_hidden_size,
        num_hidden_layers=model.num_layers, num_attention_heads=model.num_heads, attention=model.attention,
        num_key_value_heads=model.num_kv_heads, head_dim=model.head_dim, kv_lora_rank=model.kv_lora_rank,
        q_lora_rank=model.q_lora_rank, qk_nope_head_dim=model.qk_nope_head_dim, v_head_dim=model.v_head_dim,
        qk_rope_head_dim=model.qk_rope_head_dim, rope_parameters=rope, max_position_embeddings=model.max_positions,
        rms_norm_eps=model.norm_eps, tie_word_embeddings=model.tied_embeddings,
        moe_intermediate_size=config.expert_hidden_size, shared_intermediate_size=config.shared_hidden_size,
        n_routed_experts=moe.num_experts, num_experts_per_tok=moe.top_k, dense_layers=list(config.dense_layers),
        norm_topk_prob=moe.normalise_top_k, routed_scaling_factor=moe.scale, gate=moe.gate, expert_groups=groups,
        shared_only_tags=list(moe.shared_only), token_map=plan.tokens.to_dict(), use_expert_bias=moe.bias_rate > 0,
        bos_token_id=plan.tokens.bos_id, eos_token_id=plan.tokens.eos_id, pad_token_id=plan.tokens.pad_id,
    )  # fmt: skip
    if moe.routing_groups > 1:
        settings |= dict(topk_method="group_limited_greedy", n_group=moe.routing_groups)
        settings |= dict(topk_group=moe.routing_groups_kept)
    if model.wave_size:
        settings |= dict(use_continuous_audio=True, hubert_hidden_size=model.wave_size)
    return MostConfig(**{**settings, **changes})


def spread(model: torch.nn.Module, seed: int = 0) -> Any:
    """Weights so wide that a wrong detail shows; constants and biases that are not those of a new model."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=draw)
        for name, buffer in model.named_buffers():
            if name.endswith("group_constant"):
                buffer.uniform_(0.3, 2.0, generator=draw)
            if name.endswith("expert_bias"):
                buffer.uniform_(-0.3, 0.3, generator=draw)
    return model.eval()


def twin(recipe: str = "most-tiny", changes: dict[str, Any] | None = None, **of_config: Any) -> Any:
    """A MostForCausalLM with spread weights."""
    return spread(MostForCausalLM(twin_config(plan_of(recipe, changes), **of_config)))


def core_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole weights by Core's whole names; experts have one name each here."""
    renamed = {}
    for name, weight in whole_from_hf(model).items():
        name = re.sub(r"mlp\.experts\.(\d+)", r"mlp.experts.local_experts.\1", name)
        renamed[name.replace("model.audio_wave_processor", "wave")] = weight
    return renamed


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call it in a forked process: a backward pass here would leave threads behind for the next fork."""
    return run_ranks(lambda _ranks: function(*args), 1)[0]
