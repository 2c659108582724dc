"""Layers of the speech encoder that learn: between continuous frames and the projector (MoST-C with model.wave_layers).

In: the frames of the layer below, as the data has them. Out: those of the last layer, at the same places. An utterance
is heard whole, both ways, as HuBERT does, so every rank computes all utterances of its rows and takes its own places
after: the gradient of a weight is the sum over tensor and context ranks. Layers are HuBERT-base's, without dropout.
"""

# U utterances, T frames of the longest (stacked ones laid apart), E width of a frame, B rows, S sequence,
# F = stack * E, N stacked frames of all rows

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_most.config import ModelConfig

EPSILON = 1e-5
"""Of the norms; HuBERT's layer_norm_eps."""


class WaveLayer(torch.nn.Module):
    """h = norm(x + out(attention(q x, k x, v x))), y = norm(h + fc2 gelu(fc1 h))."""

    def __init__(self, width: int, model: ModelConfig, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, dtype = model.wave_heads, config.params_dtype
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            torch.nn.Linear(width, width, dtype=dtype) for _ in range(4)
        )
        self.attention_norm = torch.nn.LayerNorm(width, EPSILON, dtype=dtype)
        self.fc1 = torch.nn.Linear(width, model.wave_inner_size, dtype=dtype)
        self.fc2 = torch.nn.Linear(model.wave_inner_size, width, dtype=dtype)
        self.final_norm = torch.nn.LayerNorm(width, EPSILON, dtype=dtype)

    def forward(self, x_UTE: torch.Tensor, is_frame_UT: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            project(x_UTE).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=is_frame_UT[:, None, None, :])
        h_UTE = self.attention_norm(x_UTE + self.out_proj(heard.transpose(1, 2).flatten(2)))
        return self.final_norm(h_UTE + self.fc2(F.gelu(self.fc1(h_UTE))))


class WaveEncoder(torch.nn.ModuleDict):
    """The layers by their number in the encoder, as in its checkpoints."""

    def __init__(self, model: ModelConfig, config: TransformerConfig) -> None:
        self.stack, self.dtype = model.wave_stack, config.params_dtype
        width = model.wave_size // model.wave_stack
        super().__init__({str(layer): WaveLayer(width, model, config) for layer in model.wave_layers})
        assert config.init_method is not None, "TransformerConfig sets init_method"
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                config.init_method(weight)
            elif name.endswith("bias"):
                torch.nn.init.zeros_(weight)
            weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, wave_BSF: torch.Tensor, is_wave_BS: torch.Tensor, starts_BS: torch.Tensor) -> torch.Tensor:
        """Whole rows. `starts_BS`: where an utterance begins. Also without any frame: ranks must agree on which weights
        take part."""
        places_N = is_wave_BS.flatten().nonzero()[:, 0]
        x_UTE, is_frame_UT, at_N = self._by_utterance(wave_BSF.flatten(0, 1)[places_N], starts_BS.flatten()[places_N])
        for layer in self.values():
            x_UTE = layer(x_UTE, is_frame_UT)
        x_UTE = x_UTE.masked_fill(~is_frame_UT[..., None], 0.0)  # what fills a stacked frame up, as in frozen ones
        heard_NF = x_UTE.reshape(-1, self.stack * x_UTE.size(-1))[at_N]
        out = wave_BSF.new_zeros(wave_BSF.flatten(0, 1).shape, dtype=heard_NF.dtype)
        out = out.index_copy(0, places_N, heard_NF)
        return (out + 0.0 * x_UTE[0, 0, 0]).view(wave_BSF.shape)  # for rows without frames

    def _by_utterance(
        self, frames_NF: torch.Tensor, is_first_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(frames by utterance, which of these are frames, the place of each stacked one in utterances laid end to
        end). Without any frame, one utterance of one frame of zeros."""
        num, device = len(frames_NF), frames_NF.device
        utterance_N = is_first_N.long().cumsum(0) - 1
        counts_U = torch.bincount(utterance_N, minlength=1)
        longest = max(int(counts_U.max()), 1)
        firsts_U = counts_U.cumsum(0) - counts_U
        at_N = utterance_N * longest + torch.arange(num, device=device) - firsts_U[utterance_N]
        width = frames_NF.size(-1) // self.stack
        x = frames_NF.new_zeros(len(counts_U) * longest, frames_NF.size(-1), dtype=self.dtype)
        x[at_N] = frames_NF.to(self.dtype)
        x_UTE = x.view(len(counts_U), longest * self.stack, width)
        is_frame = torch.arange(longest, device=device) < counts_U[:, None]
        is_frame_UT = is_frame.repeat_interleave(self.stack, dim=1)
        if self.stack > 1:  # zeros fill the last one up
            is_last_UT = torch.arange(longest * self.stack, device=device) >= (counts_U[:, None] - 1) * self.stack
            is_frame_UT = is_frame_UT & ~(is_last_UT & (x_UTE == 0).all(-1))
        is_frame_UT[:, 0] = True  # attention to nothing is NaN
        return x_UTE, is_frame_UT, at_N
