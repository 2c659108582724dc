"""Which module stands where in Core's GPT: its own local spec, with our norm, linears, attention, router and experts.

Specs are what Core builds layers from; we edit what its factory returns, so that layers we do not touch stay stock.
"""

from __future__ import annotations

import functools
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_most.config import Plan
from megatron_most.moe import ModalityRouter
from megatron_most.upstream import Experts, MendedMLA, RMSNorm, SdpaAttention, submodules_of, with_linears, with_module


def block_spec(config: TransformerConfig, plan: Plan) -> Any:
    """The spec of this pipeline stage's layers."""
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    spec.layer_norm = RMSNorm
    for layer in spec.layer_specs:  # layers of one kind share a spec object: the edits are idempotent
        layer.submodules.input_layernorm = RMSNorm
        layer.submodules.pre_mlp_layernorm = RMSNorm
        layer.submodules.sharded_state_dict_keys_map = {}  # else norms of dense and GQA layers have other names
        attention = layer.submodules.self_attention
        attention.submodules.core_attention = SdpaAttention
        if plan.config.model.attention == "mla":
            attention.module = MendedMLA
        if plan.config.model.qk_norm:
            attention.submodules.q_layernorm = attention.submodules.k_layernorm = RMSNorm
        mlp = submodules_of(layer.submodules.mlp)
        if plan.moe is not None and hasattr(mlp, "router"):
            mlp.router = functools.partial(ModalityRouter, plan=plan.moe)
            mlp.experts = with_module(mlp.experts, Experts)
        with_linears(layer)
    return spec
