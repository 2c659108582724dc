"""What a run's weights mean: the settings under which the same numbers would compute something else.

Shapes are among them, for a name says more than a shape. Settings that only steer learning (auxiliary losses, init_std)
or the machine (placement, dispatcher) are not, nor are those that this model does not use.
"""

from __future__ import annotations

from megatron_most.config.partition import parse_groups
from megatron_most.config.schema import RunConfig

_ALWAYS = (
    "attention", "hidden_size", "num_layers", "num_heads", "dense_hidden_size", "norm_eps", "tied_embeddings",
    "wave_size", "wave_stack", "wave_tag", "wave_source", "wave_layers", "rope", "rope_theta",
)  # fmt: skip
_OF_ATTENTION = {
    "mla": ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    "gqa": ("qk_norm",),
}
_YARN = (
    "rope_factor", "rope_original_length", "rope_beta_fast", "rope_beta_slow", "rope_mscale", "rope_mscale_all_dim",
)  # fmt: skip
_OF_ROPE = {"plain": (), "llama3": ("rope_factor",), "yarn": _YARN}
_OF_EXPERTS = (
    "top_k", "expert_hidden_size", "shared_hidden_size", "dense_layers", "gate", "normalise_top_k", "scale",
    "routing_groups", "routing_groups_kept",
)  # fmt: skip


def meaning(config: RunConfig) -> dict[str, object]:
    """By dotted name; what is written in two ways but means the same is the same here."""
    model, moe = config.model, config.moe
    names = (*_ALWAYS, *_OF_ATTENTION[model.attention], *_OF_ROPE[model.rope])
    found: dict[str, object] = {f"model.{name}": getattr(model, name) for name in names}
    if model.attention == "gqa":
        found["model.num_kv_heads"] = model.num_kv_heads or model.num_heads
        found["model.head_dim"] = model.head_dim or model.hidden_size // model.num_heads
    if model.wave_layers:
        found |= {f"model.{name}": getattr(model, name) for name in ("wave_heads", "wave_inner_size")}
    found["moe.num_experts"] = moe.num_experts
    if moe.num_experts:
        found |= {f"moe.{name}": getattr(moe, name) for name in _OF_EXPERTS}
        groups = parse_groups(moe.groups, moe.num_experts)
        found["moe.groups"] = {tag: group.experts for group in groups for tag in group.tags}
        found["moe.shared_only_tags"] = sorted(moe.shared_only_tags)
        found["moe.bias_rate"] = "on" if moe.bias_rate else "off"  # the bias takes part in the choice of experts
    return found
