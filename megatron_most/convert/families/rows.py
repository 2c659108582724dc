"""Rows that families have in common: the frame of the model, its two kinds of attention, its feed-forwards."""

from __future__ import annotations

from megatron_most.config import RunConfig
from megatron_most.convert.tables import Row


def untied(config: RunConfig) -> bool:
    return not config.model.tied_embeddings


def compressed(config: RunConfig) -> bool:
    return config.model.q_lora_rank is not None


def uncompressed(config: RunConfig) -> bool:
    return config.model.q_lora_rank is None


def shared(config: RunConfig) -> bool:
    return config.moe.shared_hidden_size > 0


def scales_groups(config: RunConfig) -> bool:
    return config.moe.gate == "masked_softmax"


def biases_choice(config: RunConfig) -> bool:
    return config.moe.bias_rate > 0


def normed_heads(config: RunConfig) -> bool:
    return config.model.qk_norm


FRAME = (
    Row("embedding.word_embeddings.weight", "model.embed_tokens.weight", "vocab hidden", cut=0, layers="once"),
    Row("decoder.final_layernorm.weight", "model.norm.weight", "hidden", layers="once"),
    Row("output_layer.weight", "lm_head.weight", "vocab hidden", cut=0, layers="once", when=untied),
    Row("input_layernorm.weight", "input_layernorm.weight", "hidden"),
    Row("pre_mlp_layernorm.weight", "post_attention_layernorm.weight", "hidden"),
)

_OURS, _THEIRS = "self_attention.", "self_attn."
MLA = (
    Row(f"{_OURS}linear_q_proj.weight", f"{_THEIRS}q_proj.weight", "queries hidden", cut=0, when=uncompressed),
    Row(f"{_OURS}linear_q_down_proj.weight", f"{_THEIRS}q_a_proj.weight", "q_rank hidden", when=compressed),
    Row(f"{_OURS}q_layernorm.weight", f"{_THEIRS}q_a_layernorm.weight", "q_rank", when=compressed),
    Row(f"{_OURS}linear_q_up_proj.weight", f"{_THEIRS}q_b_proj.weight", "queries q_rank", cut=0, when=compressed),
    Row(f"{_OURS}linear_kv_down_proj.weight", f"{_THEIRS}kv_a_proj_with_mqa.weight", "latents hidden"),
    Row(f"{_OURS}kv_layernorm.weight", f"{_THEIRS}kv_a_layernorm.weight", "kv_rank"),
    Row(f"{_OURS}linear_kv_up_proj.weight", f"{_THEIRS}kv_b_proj.weight", "keys_values kv_rank", cut=0),
    Row(f"{_OURS}linear_proj.weight", f"{_THEIRS}o_proj.weight", "hidden values", cut=1),
)
_QKV = tuple(f"{_THEIRS}{name}_proj.weight" for name in "qkv")
GQA = (
    Row(f"{_OURS}linear_qkv.weight", _QKV, "qkv hidden", cut=0, join="qkv"),
    Row(f"{_OURS}q_layernorm.weight", f"{_THEIRS}q_norm.weight", "head", when=normed_heads),
    Row(f"{_OURS}k_layernorm.weight", f"{_THEIRS}k_norm.weight", "head", when=normed_heads),
    Row(f"{_OURS}linear_proj.weight", f"{_THEIRS}o_proj.weight", "hidden values", cut=1),
)


def _gate_up(at: str) -> tuple[str, str]:
    return f"{at}.gate_proj.weight", f"{at}.up_proj.weight"


_EXPERT, _SHARED = "mlp.experts.{expert}", "mlp.shared_experts"
DENSE = (
    Row("mlp.linear_fc1.weight", _gate_up("mlp"), "2dense hidden", cut=0, join="halves", layers="dense"),
    Row("mlp.linear_fc2.weight", "mlp.down_proj.weight", "hidden dense", cut=1, layers="dense"),
)
EXPERTS = (
    Row("mlp.router.weight", "mlp.gate.weight", "experts hidden", join="experts", layers="moe"),
    Row(f"{_EXPERT}.linear_fc1.weight", _gate_up(_EXPERT), "2expert hidden", cut=0, join="halves", layers="moe"),
    Row(f"{_EXPERT}.linear_fc2.weight", f"{_EXPERT}.down_proj.weight", "hidden expert", cut=1, layers="moe"),
    Row(
        f"{_SHARED}.linear_fc1.weight", _gate_up(_SHARED), "2shared hidden", cut=0, join="halves", layers="moe",
        when=shared,
    ),
    Row(
        f"{_SHARED}.linear_fc2.weight", f"{_SHARED}.down_proj.weight", "hidden shared", cut=1, layers="moe",
        when=shared,
    ),
)  # fmt: skip

# A dense model's feed-forward as experts, one way only: upcycled_source.py says how the numbers are made.
_FFN, _DOWN = _gate_up("mlp"), "mlp.down_proj.weight"
COPIES = (
    Row("mlp.router.weight", (), "experts hidden", layers="moe"),
    Row(f"{_EXPERT}.linear_fc1.weight", _FFN, "2expert hidden", cut=0, join="halves", layers="moe"),
    Row(f"{_EXPERT}.linear_fc2.weight", _DOWN, "hidden expert", cut=1, layers="moe"),
    Row(f"{_SHARED}.linear_fc1.weight", _FFN, "2shared hidden", cut=0, join="halves", layers="moe", when=shared),
    Row(f"{_SHARED}.linear_fc2.weight", _DOWN, "hidden shared", cut=1, layers="moe", when=shared),
)

# What our routers hold beside their weight. A family without modalities has no place for it.
_CONSTANT, _BIAS = "mlp.router.group_constant", "mlp.router.expert_bias"
OWN_BUFFERS = (
    Row(_CONSTANT, (), "groups", layers="moe", when=scales_groups, value=1.0),
    Row(_BIAS, (), "experts", layers="moe", when=biases_choice, value=0.0),
)
BUFFERS = (
    Row(_CONSTANT, "mlp.gate.group_constant", "groups", layers="moe", when=scales_groups),
    Row(_BIAS, "mlp.gate.expert_bias", "experts", join="experts", layers="moe", when=biases_choice),
)
WAVE = tuple(
    Row(f"wave.proj.{name}", f"model.audio_wave_processor.proj.{name}", shape, layers="once",
        when=lambda config: config.model.wave_size > 0)
    for name, shape in (("weight", "hidden wave"), ("bias", "hidden"))
)  # fmt: skip

_LAYER, _HUBERT = "wave.encoder.{wave_layer}", "model.audio_wave_processor.hubert_model.encoder.layers.{hubert_layer}"
WAVE_LAYERS = tuple(
    Row(f"{_LAYER}.{ours}.{kind}", f"{_HUBERT}.{theirs}.{kind}", shape if kind == "weight" else shape.split()[0],
        layers="wave")
    for ours, theirs, shape in (
        *((f"{name}_proj", f"self_attn.{name}_proj", "frame frame") for name in ("q", "k", "v", "out")),
        ("attention_norm", "self_attn_layer_norm", "frame"),
        ("fc1", "fc1", "frame_inner frame"),
        ("fc2", "fc2", "frame frame_inner"),
        ("final_norm", "final_layer_norm", "frame"),
    )
    for kind in ("weight", "bias")
)  # fmt: skip
"""Of the encoder, what learns. Its layers are counted from 1 with us, from 0 there."""
