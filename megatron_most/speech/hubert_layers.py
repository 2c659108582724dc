"""Layers of a HuBERT model as tensors: what a model begins with that trains them itself, on the frames below them.

Only of the model that made those frames, which its identity proves. Layers must be HuBERT-base's, which norm after
each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_most.errors import DataError
from megatron_most.runtime import find_device
from megatron_most.speech.frames import FrameIdentity, reopen_frames
from megatron_most.speech.hubert import load_hubert
from megatron_most.speech.hubert_files import find_hubert

if TYPE_CHECKING:
    import torch

_THEIRS = {
    **{f"{name}_proj": f"attention.{name}_proj" for name in ("q", "k", "v", "out")},
    "attention_norm": "layer_norm", "fc1": "feed_forward.intermediate_dense", "fc2": "feed_forward.output_dense",
    "final_norm": "final_layer_norm",
}  # fmt: skip
_BUILT = {"do_stable_layer_norm": False, "hidden_act": "gelu", "layer_norm_eps": 1e-5}


@dataclass(frozen=True)
class HubertLayers:
    """Some layers, and their shape."""

    heads: int
    inner_size: int
    tensors: dict[str, torch.Tensor]
    """By number of the layer, part and kind, as "10.fc1.weight"; float32, on the host."""


def read_layers(identity: FrameIdentity, layers: Sequence[int], *, model: str | None = None) -> HubertLayers:
    """Layers, counted from 1, of the model that made frames of that identity. `model`: where it is now."""
    where = model or identity.model
    reopen_frames(identity, model=model, device=find_device("cpu"))
    files = find_hubert(where)
    whole = load_hubert(files.folder, files.is_safetensors, layers[-1])
    for name, built in _BUILT.items():
        if (found := getattr(whole.config, name)) != built:
            raise DataError(
                f"{where}: {name} = {found!r}: layers that learn are built with {built!r} alone; leave all of this "
                "encoder frozen (model.wave_layers = [])"
            )
    state = whole.encoder.layers.state_dict()
    tensors = {
        f"{layer}.{ours}.{kind}": state[f"{layer - 1}.{theirs}.{kind}"]
        for layer in layers
        for ours, theirs in _THEIRS.items()
        for kind in ("weight", "bias")
    }
    return HubertLayers(whole.config.num_attention_heads, whole.config.intermediate_size, tensors)
