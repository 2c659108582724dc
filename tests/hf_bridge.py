"""A small bridge for parity tests: transformers' DeepSeek-V2 and Llama weights under the names of tests/weights.py.

The converter that users run is another thing; this knows just enough to set two models side by side.
"""

from __future__ import annotations

import re

import torch

RENAMED = [
    (r"^model\.embed_tokens", "embedding.word_embeddings"),
    (r"^model\.norm", "decoder.final_layernorm"),
    (r"^model\.layers", "decoder.layers"),
    (r"^lm_head", "output_layer"),
    (r"self_attn\.q_proj", "self_attention.linear_q_proj"),
    (r"self_attn\.q_a_proj", "self_attention.linear_q_down_proj"),
    (r"self_attn\.q_a_layernorm", "self_attention.q_layernorm"),
    (r"self_attn\.q_b_proj", "self_attention.linear_q_up_proj"),
    (r"self_attn\.kv_a_proj_with_mqa", "self_attention.linear_kv_down_proj"),
    (r"self_attn\.kv_a_layernorm", "self_attention.kv_layernorm"),
    (r"self_attn\.kv_b_proj", "self_attention.linear_kv_up_proj"),
    (r"self_attn\.o_proj", "self_attention.linear_proj"),
    (r"self_attn\.([qk])_norm", r"self_attention.\1_layernorm"),
    (r"post_attention_layernorm", "pre_mlp_layernorm"),
    (r"mlp\.gate\.weight", "mlp.router.weight"),
    (r"(?<=\.)down_proj", "linear_fc2"),
]


def whole_from_hf(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole weights, by whole names."""
    state = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    whole: dict[str, torch.Tensor] = {}
    for name, weight in state.items():
        if ".up_proj." in name or re.search(r"self_attn\.[kv]_proj", name):
            continue  # taken with its partner
        if ".gate_proj." in name:
            name, weight = (
                name.replace("gate_proj", "linear_fc1"),
                torch.cat([weight, state[name.replace("gate_proj", "up_proj")]]),
            )
        elif re.search(r"self_attn\.q_proj", name) and name.replace("q_proj", "k_proj") in state:
            name, weight = _qkv(model, state, name)
        ours = name
        for pattern, core in RENAMED:
            ours = re.sub(pattern, core, ours)
        if match := re.fullmatch(r"(.*\.mlp\.experts)\.(gate_up_proj|linear_fc2)", ours):
            linear = "linear_fc1" if match[2] == "gate_up_proj" else "linear_fc2"
            whole |= {f"{match[1]}.local_experts.{e}.{linear}.weight": expert for e, expert in enumerate(weight)}
        else:
            whole[ours] = weight
    return whole


def _qkv(model: torch.nn.Module, state: dict[str, torch.Tensor], name: str) -> tuple[str, torch.Tensor]:
    """Core's fused linear_qkv: for each key/value head its query heads, then its key, then its value."""
    config = model.config
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    q, k, v = (state[name.replace("q_proj", f"{x}_proj")] for x in "qkv")
    parts = [
        q.view(kv_heads, heads // kv_heads * width, -1),
        k.view(kv_heads, width, -1),
        v.view(kv_heads, width, -1),
    ]
    return name.replace("self_attn.q_proj", "self_attention.linear_qkv"), torch.cat(parts, 1).flatten(0, 1)
