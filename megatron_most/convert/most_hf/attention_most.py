"""The attention half of a MoST layer: DeepSeek-V2's latents or Llama's grouped queries, with their rotary positions.

Part of the code in every exported folder (see modeling_most.py). Ours rather than transformers' own classes, because
those differ between versions: DeepSeek-V2's softmax scale leaves YaRN's factor out in 5.0 (1.59 for DeepSeek-V2-Lite).
"""

# B rows, S tokens of a row, H heads, P rotary pairs

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_most import MostConfig

LATENT_NORM_EPS = 1e-6  # DeepSeek-V2's, whatever rms_norm_eps says


class MostRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In float32, whatever the model's precision."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class MostRotary:
    """cos and sin of positions [B, S, P] in float32. No module and no buffer: nothing of it is saved or rounded."""

    def __init__(self, config: MostConfig) -> None:
        self.config = config
        self.on: dict[torch.device, torch.Tensor] = {}  # frequencies, made at first use: not on a meta device

    def __call__(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        device = position_ids.device
        if device not in self.on:
            self.on[device] = self._frequencies().to(device)
        angles_BSP = position_ids.unsqueeze(-1).float() * self.on[device]
        scale = self._table_scale()
        return angles_BSP.cos() * scale, angles_BSP.sin() * scale

    def _frequencies(self) -> torch.Tensor:
        rope = self.config.rope_parameters
        if rope["rope_type"] != "default":
            return ROPE_INIT_FUNCTIONS[rope["rope_type"]](self.config, torch.device("cpu"))[0]
        size = self.config.head_dim
        return 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, device="cpu").float() / size)

    def _table_scale(self) -> float:
        """YaRN, as DeepSeek-V2: m(mscale) / m(mscale_all_dim). transformers takes m(1) where one of them is 0."""
        rope = self.config.rope_parameters
        if rope["rope_type"] != "yarn":
            return 1.0
        if rope.get("attention_factor") is not None:
            return rope["attention_factor"]
        return yarn_m(rope, "mscale", 1.0) / yarn_m(rope, "mscale_all_dim", 0.0)


def yarn_m(rope: dict[str, Any], name: str, default: float) -> float:
    """m(x) = 0.1 x ln(factor) + 1."""
    value = rope.get(name)
    return 0.1 * (default if value is None else value) * math.log(max(rope["factor"], 1.0)) + 1.0


def rotate(x: torch.Tensor, cos_BSP: torch.Tensor, sin_BSP: torch.Tensor, *, adjacent: bool) -> torch.Tensor:
    """Turn the pairs in [B, H, S, 2P]: neighbours (DeepSeek-V2), or one from each half (Llama)."""
    wide = x.float()
    a, b = (wide[..., 0::2], wide[..., 1::2]) if adjacent else wide.chunk(2, dim=-1)
    cos, sin = cos_BSP.unsqueeze(1), sin_BSP.unsqueeze(1)
    turned = (a * cos - b * sin, a * sin + b * cos)
    return (torch.stack(turned, -1).flatten(-2) if adjacent else torch.cat(turned, -1)).to(x.dtype)


def eager_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float, **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """As transformers calls it: [B, H, S, ...] in, [B, S, H, ...] and the weights out."""
    repeats = int(module.num_key_value_groups)  # type: ignore[arg-type]
    key, value = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class MostAttention(nn.Module):
    """What both kinds share; each makes queries, keys and values of its own.

    `at` tells a static cache where to write, which transformers 5.0 wants: else it writes over the first places.
    """

    is_causal = True
    num_key_value_groups: int
    scaling: float
    o_proj: nn.Linear

    def __init__(self, config: MostConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.num_heads = config.num_attention_heads

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        kind = self.config._attn_implementation
        attention = eager_attention if kind == "eager" else ALL_ATTENTION_FUNCTIONS[kind]
        out, weights = attention(self, query, key, value, mask, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.o_proj(out.reshape(*out.shape[:2], -1)), weights


class MostLatentAttention(MostAttention):
    """Multi-latent attention (DeepSeek-V2). The cache holds the latents: kv_lora_rank + qk_rope_head_dim a token."""

    num_key_value_groups = 1

    def __init__(self, config: MostConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width, rank = config.hidden_size, config.kv_lora_rank
        self.key_sizes = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        queries = self.num_heads * sum(self.key_sizes)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(width, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(width, config.q_lora_rank, bias=False)
            self.q_a_layernorm = MostRMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, queries, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(width, rank + config.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = MostRMSNorm(rank, LATENT_NORM_EPS)
        self.kv_b_proj = nn.Linear(rank, self.num_heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False)
        self.o_proj = nn.Linear(self.num_heads * config.v_head_dim, width, bias=False)
        rope = config.rope_parameters
        m = yarn_m(rope, "mscale_all_dim", 0.0) if rope["rope_type"] == "yarn" else 1.0
        self.scaling = sum(self.key_sizes) ** -0.5 * m * m

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None,
        cache: Cache | None, at: dict[str, torch.Tensor], **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        config, shape = self.config, (*x.shape[:2], self.num_heads, -1)
        if config.q_lora_rank is None:
            query = self.q_proj(x)
        else:
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q_nope, q_rope = query.view(shape).transpose(1, 2).split(self.key_sizes, dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        latent = self.kv_a_layernorm(latent).unsqueeze(1)
        q_rope, k_rope = (rotate(part, *rotary, adjacent=True) for part in (q_rope, k_rope.unsqueeze(1)))
        if cache is not None:
            latent, k_rope = cache.update(latent, k_rope, self.layer_idx, at)
        sizes = [config.qk_nope_head_dim, config.v_head_dim]
        keys_values = self.kv_b_proj(latent.squeeze(1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_nope, value = keys_values.split(sizes, dim=-1)
        key = torch.cat([k_nope, k_rope.expand(-1, self.num_heads, -1, -1)], dim=-1)
        return self.attend(torch.cat([q_nope, q_rope], dim=-1), key, value, mask, **kwargs)


class MostGroupedAttention(MostAttention):
    """Grouped-query attention (Llama)."""

    def __init__(self, config: MostConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width, size = config.hidden_size, config.head_dim
        self.num_key_value_groups = self.num_heads // config.num_key_value_heads
        self.q_proj = nn.Linear(width, self.num_heads * size, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * size, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * size, bias=False)
        self.o_proj = nn.Linear(self.num_heads * size, width, bias=False)
        self.scaling = size**-0.5

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None,
        cache: Cache | None, at: dict[str, torch.Tensor], **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        parts = (proj(x).unflatten(-1, (-1, self.config.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (part.transpose(1, 2) for part in parts)
        query, key = (rotate(part, *rotary, adjacent=False) for part in (query, key))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx, at)
        return self.attend(query, key, value, mask, **kwargs)
