"""Multi-latent attention with the gradient of its rope key mended, and norms on its latents alone.

Core's local spec computes kv_down in a ColumnParallelLinear and gathers it. The gather's backward splits the gradient
without summing it over tensor-parallel ranks, so each rank's rope-key rows learn from its own heads only (57 % off in
a tiny model, 0.16.1). MLASelfAttention accepts no other class, so the module is replaced after construction by a
whole copy of the weight on every rank: Core then gathers the rope key over the sequence, whose backward does sum. The
norms are set here too, because 0.19 refuses a norm on the compressed keys and values when queries are not compressed,
which is DeepSeek-V2-Lite: the config says qk_layernorm=False and the spec none. Without Transformer Engine 0.16
makes no MLA at all; that is mended when this file is imported.

In generation (a Lookback for a mask) the latents and the rope keys are kept, a 9th of what keys and values would take
in DeepSeek-V2-Lite. To attend, either all latents are expanded to keys and values, or the expansion is taken into
queries and outputs ("absorbed"): for one new token after T past ones H*T*(2R+P) products against T*R*H*(C+V), 120 times
fewer there. A long prompt is the other way round, see `_absorbs`.
"""

# N new tokens, B rows, T positions, H heads on this rank, R latent width, P rope width, C key width without rope,
# V value width

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings import apply_rotary_pos_emb
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer import multi_latent_attention as core_mla
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.multi_latent_attention import MLASelfAttention

from megatron_most.upstream.lookback import Lookback, causal
from megatron_most.upstream.norm import LatentNorm

if importlib.util.find_spec("transformer_engine") is None:
    core_mla.HAVE_TE = False  # True in 0.16 without it too, which then asks isinstance(x, TELinear) of a mock

# Rope turns adjacent pairs: Megatron-Core 0.16 knows it from the config, 0.19 must be told or silently turns halves.
_PAIRS = "mla_rotary_interleaved"
PAIRWISE = {_PAIRS: True} if _PAIRS in inspect.signature(apply_rotary_pos_emb).parameters else {}


def has_fused_turn(config: Any) -> bool:
    """Whether Core's kernels can turn this model's queries and keys. They learn of context ranks' positions in another
    way than ours, and 0.16's know YaRN alone.
    """
    if not config.multi_latent_attention or config.rope_type != "yarn" or config.context_parallel_size > 1:
        return False
    widths = config.qk_head_dim, config.qk_pos_emb_head_dim, config.v_head_dim
    return all(width >= 4 and width & (width - 1) == 0 for width in widths)  # Triton's ranges are powers of 2


class DuplicatedLinear(MegatronModule):
    """The same weight on every tensor-parallel rank; under sequence parallelism each rank multiplies its own tokens."""

    def __init__(self, config: Any, in_size: int, out_size: int) -> None:
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.empty(out_size, in_size, dtype=config.params_dtype))
        if config.perform_initialization:
            config.init_method(self.weight)  # outside the tensor-parallel generator: equal on all ranks
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return F.linear(x, self.weight), None


class MendedMLA(MLASelfAttention):
    """MLASelfAttention with whole down projections and normed latents."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.linear_kv_down_proj = DuplicatedLinear(
            config, config.hidden_size, config.kv_lora_rank + config.qk_pos_emb_head_dim
        )
        self.kv_layernorm = LatentNorm(config, config.kv_lora_rank)
        if config.q_lora_rank is not None:
            self.q_layernorm = LatentNorm(config, config.q_lora_rank)
            self.linear_q_down_proj = DuplicatedLinear(config, config.hidden_size, config.q_lora_rank)

    def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(attention_mask, Lookback):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        query_NHQ, latent_NL = self._query_and_latent(hidden_states, attention_mask)
        n = attention_mask.num_tokens
        out_N1D = self._look_back(query_NHQ[:n], latent_NL[:n], attention_mask).flatten(1).unsqueeze(1)
        if fill := query_NHQ.size(0) - n:
            out_N1D = F.pad(out_N1D, (0, 0, 0, 0, 0, fill))
        return self.linear_proj(out_N1D)

    def _query_and_latent(self, x: torch.Tensor, lookback: Lookback) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, H, C+P] and [N, R+P], turned to the tokens' positions; those that only fill up get position 0."""
        config = self.config
        if config.q_lora_rank is None:
            query, _ = self.linear_q_proj(x)
        else:
            query, _ = self.linear_q_up_proj(self.q_layernorm(self.linear_q_down_proj(x)[0]))
        query = query[:, 0].unflatten(-1, (-1, self.q_head_dim))
        widths = [config.kv_lora_rank, config.qk_pos_emb_head_dim]
        kept, key_rope = self.linear_kv_down_proj(x)[0].split(widths, -1)  # [N, 1, R], [N, 1, P]
        kept = self.kv_layernorm(kept)
        if config.sequence_parallel:
            both = gather_from_sequence_parallel_region(torch.cat([kept, key_rope], -1), group=self.pg_collection.tp)
            kept, key_rope = both.split(widths, -1)
        without, query_rope = query.split([config.qk_head_dim, config.qk_pos_emb_head_dim], -1)
        turned = self._turn(torch.cat([query_rope, key_rope], 1), lookback)  # the key as one head more
        return torch.cat([without, turned[:, :-1]], -1), torch.cat([kept[:, 0], turned[:, -1]], -1)

    def _turn(self, x_NHP: torch.Tensor, lookback: Lookback) -> torch.Tensor:
        """As Core's apply_rotary_pos_emb, to the bit; it works out sines and cosines in each layer anew."""
        if lookback.turns is None:
            capacity = lookback.cache.capacity if lookback.cache else lookback.longest  # few tables, which Core keeps
            table = self.rotary_pos_emb(capacity)
            angles, scale = table if isinstance(table, tuple) else (table, 1.0)
            angles_N1H = angles[..., : angles.size(-1) // 2][lookback.position_N][:, 0]  # both halves are the same
            fill = x_NHP.size(0) - lookback.num_tokens
            angles_N1H = F.pad(angles_N1H, (0, 0, 0, 0, 0, fill))
            lookback.turns = (angles_N1H.cos() * scale).to(x_NHP.dtype), (angles_N1H.sin() * scale).to(x_NHP.dtype)
        cos, sin = lookback.turns
        even, odd = x_NHP.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.cat([even * cos - odd * sin, odd * cos + even * sin], -1)

    def _look_back(self, query_NHQ: torch.Tensor, latent_NL: torch.Tensor, lookback: Lookback) -> torch.Tensor:
        """[N, H, V]."""
        kept_BTL = lookback.put(self.layer_number, "latent", latent_NL) if lookback.cache else None
        if lookback.is_even:
            assert kept_BTL is not None
            seen_B1T = None if lookback.seen_BT is None else lookback.seen_BT[:, None]
            return self._absorbed(query_NHQ.unsqueeze(1), kept_BTL[:, : lookback.longest], seen_B1T)
        parts = []
        for span in lookback.spans:
            here = slice(span.first, span.first + span.count)
            past_TL = latent_NL[here] if kept_BTL is None else kept_BTL[span.row, : span.past + span.count]
            if self._absorbs(span.count):
                seen = causal(span.past, span.count, query_NHQ.device)
                parts.append(self._absorbed(query_NHQ[None, here], past_TL[None], seen[None]))
            else:
                parts.append(self._expanded(query_NHQ[here], past_TL, span.past))
        return torch.cat(parts)

    def _absorbs(self, count: int) -> bool:
        """Whether the absorbed way takes fewer products for so many new tokens of a row, whatever is past."""
        c = self.config
        more_a_token = 2 * c.kv_lora_rank + c.qk_pos_emb_head_dim - self.q_head_dim - c.v_head_dim
        return count * more_a_token < c.kv_lora_rank * (c.qk_head_dim + c.v_head_dim)

    def _expansion(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent to key [H, C, R], latent to value [H, V, R]."""
        config = self.config
        whole = self.linear_kv_up_proj.weight.unflatten(0, (-1, config.qk_head_dim + config.v_head_dim))
        return whole[:, : config.qk_head_dim], whole[:, config.qk_head_dim :]

    def _absorbed(
        self, query_BSHQ: torch.Tensor, past_BTL: torch.Tensor, seen_BST: torch.Tensor | None
    ) -> torch.Tensor:
        """S new tokens of each of B rows -> [B*S, H, V]; all heads look at the same latents, all of them or those seen.

        They are keys and values both: the rope's part of what comes of them is dropped, for fused attention on a CPU
        wants values as wide as keys, and one call of it costs less than the products one by one.
        """
        to_key_HCR, to_value_HVR = self._expansion()
        batch, _, num_heads, _ = query_BSHQ.shape
        query_NHC, rope_NHP = query_BSHQ.flatten(0, 1).split(
            [self.config.qk_head_dim, self.config.qk_pos_emb_head_dim], -1
        )
        absorbed_NHR = (query_NHC.transpose(0, 1) @ to_key_HCR).transpose(0, 1)
        query_B1XL = torch.cat([absorbed_NHR, rope_NHP], -1).view(batch, 1, -1, past_BTL.size(-1))  # X = S*H
        if seen_BST is not None and seen_BST.size(1) > 1:
            seen_BST = seen_BST.repeat_interleave(num_heads, 1)
        seen_B1XT = None if seen_BST is None else seen_BST.unsqueeze(1)
        past_B1TL = past_BTL.unsqueeze(1)
        mixed_B1XL = F.scaled_dot_product_attention(
            query_B1XL, past_B1TL, past_B1TL, attn_mask=seen_B1XT, scale=self.softmax_scale
        )
        mixed_NHR = mixed_B1XL[..., : self.config.kv_lora_rank].reshape(-1, num_heads, self.config.kv_lora_rank)
        return (mixed_NHR.transpose(0, 1) @ to_value_HVR.transpose(1, 2)).transpose(0, 1)

    def _expanded(self, query_SHQ: torch.Tensor, past_TL: torch.Tensor, past: int) -> torch.Tensor:
        """New tokens of one row -> [S, H, V]."""
        to_key_HCR, to_value_HVR = self._expansion()
        latent_TR, rope_TP = past_TL.split([self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim], -1)
        key_HTC = torch.einsum("tr,hcr->htc", latent_TR, to_key_HCR)
        key_HTQ = torch.cat([key_HTC, rope_TP.expand(key_HTC.size(0), -1, -1)], -1)
        value_HTV = torch.einsum("tr,hvr->htv", latent_TR, to_value_HVR)
        mask = causal(past, query_SHQ.size(0), query_SHQ.device) if past else None
        out_HSV = F.scaled_dot_product_attention(
            query_SHQ.transpose(0, 1)[None], key_HTQ[None], value_HTV[None], attn_mask=mask, is_causal=mask is None,
            scale=self.softmax_scale,
        )  # fmt: skip
        return out_HSV[0].transpose(0, 1)
