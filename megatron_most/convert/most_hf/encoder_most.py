"""Layers of the speech encoder that MoST-C has learnt with: HuBERT-base's, from the frames of the layer below on.

Copied as it is into every exported folder, so it imports torch alone. Names of weights are those that the encoder has
in the release. An utterance is heard whole, both ways.
"""

# U utterances, T frames of the longest (stacked ones laid apart), E width of a frame, B rows, S tokens, F = stack * E,
# N stacked frames of all rows

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class MostWaveAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x_UTE: torch.Tensor, is_frame_UT: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            project(x_UTE).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=is_frame_UT[:, None, None, :])
        return self.out_proj(heard.transpose(1, 2).flatten(2))


class MostWaveLayer(nn.Module):
    """h = norm(x + attention(x)), y = norm(h + fc2 gelu(fc1 h))."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn = MostWaveAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x_UTE: torch.Tensor, is_frame_UT: torch.Tensor) -> torch.Tensor:
        h_UTE = self.self_attn_layer_norm(x_UTE + self.self_attn(x_UTE, is_frame_UT))
        return self.final_layer_norm(h_UTE + self.fc2(F.gelu(self.fc1(h_UTE))))


class MostWaveLayers(nn.Module):
    """`layers` by the number that each has in the encoder, from 0."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.stack = config.audio_frames_stacked
        of = config.hubert_hidden_size // self.stack, config.audio_wave_heads, config.audio_wave_intermediate_size
        self.layers = nn.ModuleDict({str(layer - 1): MostWaveLayer(*of) for layer in config.audio_wave_layers})

    def forward(self, wave_BSF: torch.Tensor, is_wave_BS: torch.Tensor, starts_BS: torch.Tensor) -> torch.Tensor:
        if not is_wave_BS.any():
            return wave_BSF
        places_N = is_wave_BS.flatten().nonzero()[:, 0]
        utterance_N = starts_BS.flatten()[places_N].long().cumsum(0) - 1
        counts_U = torch.bincount(utterance_N)
        longest, first_U = int(counts_U.max()), counts_U.cumsum(0) - counts_U
        at_N = utterance_N * longest + torch.arange(len(places_N), device=places_N.device) - first_U[utterance_N]
        x = wave_BSF.new_zeros(len(counts_U) * longest, wave_BSF.size(-1))
        x[at_N] = wave_BSF.flatten(0, 1)[places_N]
        x_UTE = x.view(len(counts_U), longest * self.stack, -1)
        ends_U1 = counts_U[:, None] * self.stack
        place_T = torch.arange(longest * self.stack, device=places_N.device)
        is_fill_UT = (place_T >= ends_U1 - self.stack) & (x_UTE == 0).all(-1) & (self.stack > 1)
        is_frame_UT = (place_T < ends_U1) & ~is_fill_UT | (place_T == 0)
        for layer in self.layers.values():
            x_UTE = layer(x_UTE, is_frame_UT)
        heard = x_UTE.masked_fill(~is_frame_UT[..., None], 0.0).reshape(x.shape)
        out = torch.zeros_like(wave_BSF).flatten(0, 1).index_copy(0, places_N, heard[at_N])
        return out.view(wave_BSF.shape)


class MostWaveEncoder(nn.Module):
    """What of the encoder has learnt: `encoder.layers.N`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.encoder = MostWaveLayers(config)

    def forward(self, wave_BSF: torch.Tensor, is_wave_BS: torch.Tensor, starts_BS: torch.Tensor) -> torch.Tensor:
        return self.encoder(wave_BSF, is_wave_BS, starts_BS)
