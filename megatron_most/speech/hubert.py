"""HubertFeatures: the output of layer L of a frozen transformers HubertModel, the same alone and in any batch.

HuBERT-base normalises over time inside its first convolution (GroupNorm), so the padding of a batch leaks into every
frame, and transformers' own forward changes units with the batch. Here that layer sees each wave by itself; after it
nothing looks beyond a frame's own wave: later convolutions have no padding, frames beyond the end are zeroed before the
positional convolution, and attention masks them. Layers above L are dropped. What is left is rounding, below NOISE.
"""

# B waves of a batch, C channels, T frames, D width, N frames of all waves of a batch

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_most.errors import ConfigError, DataError
from megatron_most.runtime import Device, find_device
from megatron_most.speech.codec import Precision
from megatron_most.speech.hubert_files import find_hubert

if TYPE_CHECKING:
    import torch

FEATURES_VERSION = 1
NOISE = 2e-5
"""Most by which a batch may move a frame in fp32, relative to its norm. Seen: 1e-6 at HuBERT-base's size on speech,
4e-6 in the small models of the tests, which check that half of it is not reached."""
_BATCH_S = {"cpu": 16.0, "gpu": 640.0}  # seconds of a batch, padding included
# What of a model's config decides its features.
_DECIDING = (
    "conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation",
    "feat_proj_layer_norm", "hidden_size", "intermediate_size", "num_attention_heads", "hidden_act", "layer_norm_eps",
    "do_stable_layer_norm", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_batch_norm",
)  # fmt: skip


@dataclass(frozen=True)
class FeatureBatch:
    """Frames of some waves, end to end: wave `rows[i]` has the next `num_frames[i]` of `features_ND` (fp32)."""

    rows: list[int]
    num_frames: list[int]
    features_ND: torch.Tensor


class HubertFeatures:
    """A model stopped after layer `layer`, counted from 1; layer L is transformers' `hidden_states[L]`.

    `normalise`: scale each wave to mean 0 and variance 1; None does as the model's preprocessor_config.json says.
    `precision`: auto is bf16 where the GPU computes it, else fp32. `batch_s`: seconds of a batch with its padding.
    """

    def __init__(
        self,
        model: str | Path,
        layer: int,
        *,
        normalise: bool | None = None,
        revision: str | None = None,
        device: Device | None = None,
        precision: Precision = "auto",
        batch_s: float | None = None,
    ) -> None:
        files = find_hubert(model, revision)
        self.device = device or find_device()
        self.precision = _find_precision(precision, self.device)
        self.model_name = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
        self.revision, self.layer, self.sample_rate = revision, layer, files.sample_rate
        self.normalise = bool(files.normalise) if normalise is None else normalise
        self._model = load_hubert(files.folder, files.is_safetensors, layer).to(self.device.torch_device)
        config = self._model.config
        self._convs = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.width: int = config.hidden_size
        self.frame_s = math.prod(config.conv_stride) / self.sample_rate
        self.min_samples = 1
        for kernel, stride in reversed(self._convs):
            self.min_samples = (self.min_samples - 1) * stride + kernel
        self._budget = int((batch_s or _BATCH_S[self.device.kind]) * self.sample_rate)
        shape = {name: getattr(config, name, None) for name in _DECIDING}
        self.facts: dict[str, Any] = {
            "features": FEATURES_VERSION,
            "config": {name: list(value) if isinstance(value, tuple) else value for name, value in shape.items()},
            "weights": files.weights_sha256,
            "layer": layer,
            "normalise": self.normalise,
            "sample_rate": self.sample_rate,
        }

    def __call__(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features (frames, width) in float32 of each wave, in the order given."""
        found: dict[int, np.ndarray] = {}
        for batch in self.batches(waves):
            found |= zip(batch.rows, _split(batch.features_ND.cpu().numpy(), batch.num_frames), strict=True)
        return [found[row] for row in range(len(waves))]

    def num_frames(self, num_samples: int) -> int:
        """Frames of a wave; the convolutions have no padding."""
        for kernel, stride in self._convs:
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    def batches(self, waves: Sequence[np.ndarray]) -> Iterator[FeatureBatch]:
        """Features of all waves, longest first, in batches of like lengths that depend on the lengths alone."""
        for row, wave in enumerate(waves):
            if wave.ndim != 1 or len(wave) < self.min_samples:
                raise DataError(
                    f"wave {row} of shape {wave.shape}: needs one axis of {self.min_samples} samples or more"
                )
        rows = sorted(range(len(waves)), key=lambda row: -len(waves[row]))  # stable: ties keep their order
        while rows:
            size = max(1, self._budget // len(waves[rows[0]]))
            yield self.batch(waves, rows[:size])
            rows = rows[size:]

    def batch(self, waves: Sequence[np.ndarray], rows: list[int]) -> FeatureBatch:
        """Features of `waves[row]` for each of the rows, computed as one batch."""
        import torch

        num_frames = [self.num_frames(len(waves[row])) for row in rows]
        with torch.inference_mode(), self._arithmetic():
            hidden_BTD = self._forward([self._prepared(waves[row]) for row in rows], num_frames)
            parts = [hidden_TD[:n] for hidden_TD, n in zip(hidden_BTD, num_frames, strict=True)]
            return FeatureBatch(rows, num_frames, torch.cat(parts).float())

    def _prepared(self, wave: np.ndarray) -> torch.Tensor:
        import torch

        wave = np.array(wave, dtype=np.float32)
        if self.normalise:
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + np.float32(1e-7))
        return torch.from_numpy(wave).to(self.device.torch_device)

    def _forward(self, waves: list[torch.Tensor], num_frames: list[int]) -> torch.Tensor:
        import torch

        model = self._model
        first, *convs = model.feature_extractor.conv_layers
        alone = [first(wave[None, None])[0] for wave in waves]
        if len(alone) == 1:
            hidden_BCT = alone[0][None]
        else:
            hidden_BCT = alone[0].new_zeros(len(alone), alone[0].size(0), max(one.size(1) for one in alone))
            for row_CT, one in zip(hidden_BCT, alone, strict=True):
                row_CT[:, : one.size(1)] = one
        del alone
        for conv in convs:
            hidden_BCT = conv(hidden_BCT)
        hidden_BTD = model.feature_projection(hidden_BCT.transpose(1, 2))
        is_frame_BT = None
        if min(num_frames) < max(num_frames):
            places_T = torch.arange(hidden_BTD.size(1), device=hidden_BTD.device)
            is_frame_BT = places_T < torch.tensor(num_frames, device=hidden_BTD.device)[:, None]
            hidden_BTD = hidden_BTD.masked_fill(~is_frame_BT[..., None], 0)
        hidden_BTD = hidden_BTD + self._position(hidden_BTD, is_frame_BT)
        if not model.config.do_stable_layer_norm:
            hidden_BTD = model.encoder.layer_norm(hidden_BTD)
        mask = None if is_frame_BT is None else is_frame_BT[:, None, None, :]
        for layer in model.encoder.layers:
            output = layer(hidden_BTD, attention_mask=mask)
            hidden_BTD = output[0] if isinstance(output, tuple) else output
        return hidden_BTD

    def _position(self, hidden_BTD: torch.Tensor, is_frame_BT: torch.Tensor | None) -> torch.Tensor:
        """The positional convolution. A batch norm before it would lift the zeros beyond the end."""
        embed = self._model.encoder.pos_conv_embed
        if is_frame_BT is None or getattr(embed, "batch_norm", None) is None:
            return embed(hidden_BTD)
        hidden_BDT = embed.batch_norm(hidden_BTD.transpose(1, 2)).masked_fill(~is_frame_BT[:, None], 0)
        return embed.activation(embed.padding(embed.conv(hidden_BDT))).transpose(1, 2)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        import torch

        if self.precision == "bf16":
            with torch.autocast(self.device.torch_device.type, dtype=torch.bfloat16):
                yield
        else:
            with self.fp32():
                yield

    @contextmanager
    def fp32(self) -> Iterator[None]:
        """Sums in fp32 proper, without the shortcut that GPUs take (TF32)."""
        import torch

        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(before)


def _find_precision(wanted: Precision, device: Device) -> Precision:
    if wanted not in ("auto", "fp32", "bf16"):
        raise ConfigError("precision", wanted, "no such precision", 'use "auto", "fp32" or "bf16"')
    if wanted == "auto":
        return "bf16" if device.kind == "gpu" and device.bf16_ok else "fp32"
    return wanted


def load_hubert(folder: Path, is_safetensors: bool, layer: int) -> Any:
    """The model with its first `layer` layers, in eval mode. DataError for missing weights: they would be random."""
    import torch
    from safetensors import SafetensorError
    from transformers import HubertModel
    from transformers.utils import logging

    unreadable = (SafetensorError, pickle.UnpicklingError)  # what weights_only refuses is the latter
    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = HubertModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=is_safetensors,
            weights_only=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, EOFError, *unreadable) as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise DataError(f"{folder}: not a readable HubertModel ({first})") from error
    finally:
        if had_bars:
            logging.enable_progress_bar()
    missing = [name for name in report["missing_keys"] if "masked_spec_embed" not in name]
    if missing or report["mismatched_keys"]:
        names = ", ".join(sorted(map(str, [*missing, *report["mismatched_keys"]]))[:3])
        raise DataError(f"{folder}: not the weights of a HubertModel: missing or of another shape: {names}")
    if type(layer) is not int or not 1 <= layer <= len(model.encoder.layers):
        raise ConfigError("layer", layer, f"the model has layers 1 to {len(model.encoder.layers)}", "use one of them")
    model.encoder.layers = model.encoder.layers[:layer]
    return model.eval().requires_grad_(False)


def _split(frames: np.ndarray, num_frames: list[int]) -> list[np.ndarray]:
    return np.split(frames, np.cumsum(num_frames)[:-1])
