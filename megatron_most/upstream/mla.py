"""Multi-latent attention with the gradient of its rope key mended, and norms on its latents alone.

Core's local spec computes kv_down in a ColumnParallelLinear and gathers it. The gather's backward splits the gradient
without summing it over tensor-parallel ranks, so each rank's rope-key rows learn from its own heads only (57 % off in
a tiny model, 0.16.1). MLASelfAttention accepts no other class, so the module is replaced after construction by a
whole copy of the weight on every rank: Core then gathers the rope key over the sequence, whose backward does sum. The
norms are set here too, because 0.19 refuses a norm on the compressed keys and values when queries are not compressed,
which is DeepSeek-V2-Lite: the config says qk_layernorm=False and the spec none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.multi_latent_attention import MLASelfAttention

from megatron_most.upstream.norm import LatentNorm


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
