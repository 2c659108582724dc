"""FrameSource: waves in, continuous features out, a row of numbers a frame; what MoST-C hears in place of units.

Two kinds: a layer of a HuBERT model, and MFCCs, which need no download. Each wave goes through by itself, so that no
number depends on what else is in a batch, on the layout or on when a run was killed. `stack` lays neighbouring frames
side by side, the last filled up with zeros: the model's linear map over them is a convolution whose kernel and stride
are `stack`. How many frames a wave has follows from its length alone, so documents can be laid out without any sound.
A source's identity has a hash of all that decides its numbers, and travels with every data set and cache.
"""

# T frames, F width of a frame

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from megatron_most.errors import ConfigError, DataError
from megatron_most.runtime import Device
from megatron_most.speech.codec import Precision, hash_of
from megatron_most.speech.features import (
    FEATURES_VERSION,
    SAMPLE_RATE,
    WIDTH,
    mfcc_features,
    min_samples,
    periods_per_frame,
)
from megatron_most.speech.hubert import HubertFeatures

_HOP, _WINDOW = 160, 400  # of features.py: a period of MFCCs and the window it is seen through
MOST_STACKED = 64


@dataclass(frozen=True, kw_only=True)
class FrameSettings:
    """Which features."""

    kind: Literal["mfcc", "hubert"] = "mfcc"
    """mfcc: 39 numbers a frame, no download. hubert: a layer of a HuBERT model."""
    model: str | None = None
    """hubert: a folder or hub id in transformers' format."""
    layer: int | None = None
    """hubert: which layer, counted from 1."""
    frame_ms: Literal[20, 40] = 40
    """mfcc: frame period. A model has its own."""
    stack: int = 1
    """So many neighbouring frames become one, of so many times the width: fewer places in a row."""


@dataclass(frozen=True, kw_only=True)
class FrameIdentity:
    """Which features these are. Data sets with different hashes, or of different precision, do not mix."""

    name: str
    kind: str
    model: str
    """hubert: hub id, or the last part of a folder's name; empty for mfcc."""
    layer: int
    """hubert; else 0."""
    hash: str
    width: int
    """Of a stacked frame."""
    stack: int
    sample_rate: int
    frame_s: float
    """Of a stacked frame."""
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.name} ({self.hash[:12]}), {self.width} wide, computed in {self.precision}"

    @property
    def key(self) -> str:
        """What is compared before data sets mix."""
        return self.hash if self.precision == "fp32" else f"{self.hash}/{self.precision}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FrameIdentity:
        """The inverse of `to_dict`; DataError where a field is missing, unknown or of another type."""
        types: dict[str, type] = {"name": str, "kind": str, "model": str, "layer": int, "hash": str, "width": int}
        types |= {"stack": int, "sample_rate": int, "frame_s": float, "precision": str}
        wrong = sorted(set(values) ^ set(types)) or [k for k, t in types.items() if type(values[k]) is not t]
        if wrong:
            raise DataError(f"identity of frames: {', '.join(wrong)}: missing, unknown or of a wrong type")
        return cls(**values)


class FrameSource(Protocol):
    """Turns speech into features, each wave by itself."""

    @property
    def identity(self) -> FrameIdentity: ...

    @property
    def min_samples(self) -> int:
        """Shorter waves have no frame."""
        ...

    def num_frames(self, num_samples: int) -> int:
        """Of a wave so long."""
        ...

    def __call__(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features [T, F] in float32 of mono float32 waves at `identity.sample_rate`, in the order given."""
        ...


class MfccFrames:
    """13 cepstral coefficients and their two slopes, each scaled to mean 0 and variance 1 over its utterance."""

    def __init__(self, frame_s: float = 0.04) -> None:
        self._frame_s, self._per_frame = frame_s, periods_per_frame(frame_s)
        facts = {"features": FEATURES_VERSION, "kind": "mfcc", "frame_s": frame_s, "scaled": "utterance"}
        self.identity = FrameIdentity(
            name=f"mfcc-{round(1000 * frame_s)}ms", kind="mfcc", model="", layer=0, hash=hash_of(facts), width=WIDTH,
            stack=1, sample_rate=SAMPLE_RATE, frame_s=frame_s,
        )  # fmt: skip
        self.min_samples = min_samples(frame_s)
        import scipy.fft  # noqa: F401  (threads will make frames: see effects.load)

    def num_frames(self, num_samples: int) -> int:
        return max(0, (1 + (num_samples - _WINDOW) // _HOP) // self._per_frame)

    def __call__(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._scaled(mfcc_features(wave, self._frame_s)) for wave in waves]

    @staticmethod
    def _scaled(features_TF: np.ndarray) -> np.ndarray:
        spread_F = features_TF.std(axis=0, dtype=np.float32)
        return (features_TF - features_TF.mean(axis=0, dtype=np.float32)) / (spread_F + np.float32(1e-3))


class HubertFrames:
    """A layer of a frozen HuBERT model."""

    def __init__(self, features: HubertFeatures) -> None:
        self._features = features
        name = features.model_name
        name = Path(name).name if Path(name).is_dir() else name
        self.identity = FrameIdentity(
            name=f"{Path(name).name}-layer{features.layer}", kind="hubert", model=name, layer=features.layer,
            hash=hash_of(features.facts), width=features.width, stack=1, sample_rate=features.sample_rate,
            frame_s=features.frame_s, precision=features.precision,
        )  # fmt: skip
        self.min_samples = features.min_samples

    def num_frames(self, num_samples: int) -> int:
        return max(0, self._features.num_frames(num_samples))

    def __call__(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._features([wave])[0] for wave in waves]


class StackedFrames:
    """`stack` neighbouring frames of another source as one."""

    def __init__(self, source: FrameSource, stack: int) -> None:
        inner = source.identity
        self._source, self._stack = source, stack
        self.identity = replace(
            inner, name=f"{inner.name}-x{stack}", hash=hash_of({"frames": inner.hash, "stack": stack}), stack=stack,
            width=inner.width * stack, frame_s=inner.frame_s * stack,
        )  # fmt: skip
        self.min_samples = source.min_samples

    def num_frames(self, num_samples: int) -> int:
        return -(-self._source.num_frames(num_samples) // self._stack)

    def __call__(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._stacked(features) for features in self._source(waves)]

    def _stacked(self, features_TF: np.ndarray) -> np.ndarray:
        missing = -len(features_TF) % self._stack
        return np.pad(features_TF, ((0, missing), (0, 0))).reshape(-1, self.identity.width)


def open_frames(settings: FrameSettings, *, device: Device | None = None, precision: Precision = "auto") -> FrameSource:
    """The source that the settings name."""
    if not 1 <= settings.stack <= MOST_STACKED:
        raise ConfigError("frames.stack", settings.stack, "not a number of frames", f"use 1 to {MOST_STACKED}")
    source: FrameSource
    if settings.kind == "mfcc":
        if settings.model is not None or settings.layer is not None:
            field, value = ("model", settings.model) if settings.model is not None else ("layer", settings.layer)
            raise ConfigError(f"frames.{field}", value, "MFCCs have none", 'leave it out, or give frames.kind "hubert"')
        source = MfccFrames(settings.frame_ms / 1000)
    else:
        for field in ("model", "layer"):
            if getattr(settings, field) is None:
                raise ConfigError(f"frames.{field}", None, "not set", "name the HuBERT model and its layer")
        assert settings.model is not None and settings.layer is not None
        source = HubertFrames(HubertFeatures(settings.model, settings.layer, device=device, precision=precision))
    return source if settings.stack == 1 else StackedFrames(source, settings.stack)


def reopen_frames(identity: FrameIdentity, *, model: str | None = None, device: Device | None = None) -> FrameSource:
    """The source that made what has this identity; DataError where it is not the same now. `model`: where a HuBERT
    model is, if not where the identity says.
    """
    precision: Precision = "bf16" if identity.precision == "bf16" else "fp32"
    if identity.kind == "mfcc":
        frame_ms: Any = round(1000 * identity.frame_s / identity.stack)
        settings = FrameSettings(kind="mfcc", frame_ms=frame_ms, stack=identity.stack)
    elif identity.kind == "hubert":
        settings = FrameSettings(
            kind="hubert", model=model or identity.model, layer=identity.layer, stack=identity.stack
        )
    else:
        raise DataError(f"frames of kind {identity.kind!r}; this version knows mfcc and hubert")
    source = open_frames(settings, device=device, precision=precision)
    if source.identity.key != identity.key:
        raise DataError(
            f"the data has frames of {identity}, but {model or identity.model or 'this version'} now makes those of "
            f"{source.identity}: other weights, layer or settings; give the model that the data was made with"
        )
    return source
