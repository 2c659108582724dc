"""Continuous speech features in place of token embeddings, through one linear map (MoST-C), or through layers of their
encoder that learn, and then that map.

Each feature vector stands at its own position with tag 1, and uses the audio experts like a unit would. Under sequence
parallelism every tensor rank projects its own positions, so the weights are marked to be summed over tensor ranks.
"""

# B rows, S sequence (of this tensor rank), D width, F width of continuous features

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_most.config import ModelConfig
from megatron_most.model.wave_encoder import WaveEncoder


class WaveProjector(torch.nn.Module):
    """x_d = W_df wave_f + b_d where there is wave, else the embedding."""

    def __init__(self, model: ModelConfig, config: TransformerConfig) -> None:
        super().__init__()
        self.encoder = WaveEncoder(model, config) if model.wave_layers else None
        self.proj = torch.nn.Linear(model.wave_size, config.hidden_size, dtype=config.params_dtype)
        assert config.init_method is not None, "TransformerConfig sets init_method"
        config.init_method(self.proj.weight)
        torch.nn.init.zeros_(self.proj.bias)
        for weight in self.proj.parameters():
            weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def encode(
        self, wave_BSF: torch.Tensor, is_wave_BS: torch.Tensor, starts_BS: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Frames of whole rows, before ranks take their parts: through the encoder's layers, where there are some.
        `starts_BS`: see PackedBatch.wave_starts_BS.
        """
        if self.encoder is None:
            return wave_BSF
        is_new_BS = is_wave_BS & ~F.pad(is_wave_BS, (1, -1))
        return self.encoder(wave_BSF, is_wave_BS, is_new_BS if starts_BS is None else starts_BS)

    def forward(self, embedded_SBD: torch.Tensor, wave_BSF: torch.Tensor, is_wave_BS: torch.Tensor) -> torch.Tensor:
        is_wave_SB1 = is_wave_BS.T.unsqueeze(-1)
        wave_BSF = wave_BSF.masked_fill(
            ~is_wave_BS.unsqueeze(-1), 0.0
        )  # what stands elsewhere must not matter, NaN included
        projected_SBD = self.proj(wave_BSF.to(self.proj.weight.dtype)).transpose(0, 1)
        mixed_SBD = torch.where(is_wave_SB1, projected_SBD, embedded_SBD)
        return mixed_SBD.contiguous()  # pipeline stages send what keeps this order of numbers
