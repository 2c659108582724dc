"""Small HuBERT models with random weights, saved as users have them, and waves of many lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

VARIANTS: dict[str, dict[str, Any]] = {
    "group": {},  # as HuBERT-base: the first convolution is normalised over time
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},  # as HuBERT-large
    "25hz": {"conv_kernel": (10, 3, 3, 3, 3, 2, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2, 2), "conv_dim": (16,) * 8},
    "batch-norm": {"conv_pos_batch_norm": True},
}


def save_tiny_hubert(folder: Path, variant: str, num_layers: int = 3) -> Path:
    """Width 32. Weights are larger than at a real start, so that features differ from frame to frame."""
    import torch
    from transformers import HubertConfig, HubertModel

    shape = {
        "hidden_size": 32,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "num_feat_extract_layers": len(VARIANTS[variant].get("conv_dim", (16,) * 7)),
    }
    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**{**shape, **VARIANTS[variant]})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and name.startswith("encoder"):
                weight.mul_(4.0)
        norm = model.encoder.pos_conv_embed.batch_norm
        if norm is not None:
            norm.running_mean.uniform_(-1, 1)
            norm.bias.uniform_(-1, 1)
    model.save_pretrained(folder)
    return folder


def own_hidden_states(folder: Path, waves: list[np.ndarray]) -> list[list[np.ndarray]]:
    """What transformers' own forward gives for single waves: their hidden states, the input of layer 1 first."""
    import torch
    from transformers import HubertModel

    model = HubertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        outputs = [model(torch.from_numpy(wave)[None], output_hidden_states=True) for wave in waves]
    return [[hidden[0].numpy() for hidden in output.hidden_states] for output in outputs]


def random_waves(num: int, seed: int = 0) -> list[np.ndarray]:
    """Noise in bursts, 0.05 to 0.8 s at 16 kHz, loud and soft."""
    rng = np.random.default_rng(seed)
    waves = []
    for size in np.exp(rng.uniform(np.log(800), np.log(12800), num)).astype(int):
        beat = 1 + np.sin(np.arange(size) / rng.uniform(200, 2000))
        waves.append((rng.uniform(0.02, 0.3) * beat * rng.standard_normal(size)).astype(np.float32))
    return waves
