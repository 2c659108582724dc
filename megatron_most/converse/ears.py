"""Ears: what a model is given of a sound. Units by its codec or, where it has learnt to hear them, continuous frames.

Which of the two a model takes is said by what its data was made with, and so is the codec or the source of frames: by
hash, for units or frames of another are other sounds.
"""

# T frames, F width of a frame

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_most.converse.models import Opened
from megatron_most.errors import DataError, MostError
from megatron_most.runtime import Device
from megatron_most.speech import FrameSource, SpeechCodec, reopen_frames

Heard = tuple[int, ...] | np.ndarray
"""Units, or frames [T, F]."""


class Ears(Protocol):
    """Hears mono float32 waves at `sample_rate`, of `min_samples` at least."""

    sample_rate: int
    min_samples: int

    def __call__(self, wave: np.ndarray) -> Heard: ...

    def facts(self) -> dict[str, Any]:
        """For records."""
        ...


class UnitEars:
    """See Ears."""

    def __init__(self, codec: SpeechCodec) -> None:
        self._codec = codec
        self.sample_rate, self.min_samples = codec.identity.sample_rate, codec.min_samples

    def __call__(self, wave: np.ndarray) -> tuple[int, ...]:
        [found] = self._codec.encode([wave])
        return tuple(int(unit) for unit in found.units)

    def facts(self) -> dict[str, Any]:
        return {"codec": self._codec.identity.key}


class FrameEars:
    """See Ears."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self.sample_rate, self.min_samples = source.identity.sample_rate, source.min_samples

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        return self._source([wave])[0]

    def facts(self) -> dict[str, Any]:
        return {"frames": self._source.identity.key}


def hears_frames(opened: Opened) -> bool:
    """Whether the model is given frames of what users say, in place of units."""
    return opened.model.frames_tag is not None


def frame_ears(opened: Opened, encoder: Path | None = None, device: Device | None = None) -> FrameEars:
    """Of a model that hears frames. `encoder`: the HuBERT they come from, where it has moved."""
    if opened.made_with.frames is None:
        raise DataError(
            f"{opened.folder}: the model hears continuous frames, and its folder does not say of which source; give a "
            "checkpoint of its run, which has made_with.json"
        )
    try:
        source = reopen_frames(opened.made_with.frames, model=str(encoder) if encoder else None, device=device)
    except MostError as error:
        remedy = "give the folder of its encoder with --codec-model" if opened.made_with.frames.model else "upgrade"
        raise DataError(f"{opened.folder}: the model cannot hear: {error}; {remedy}") from error
    return FrameEars(source)


def open_ears(opened: Opened, codec: SpeechCodec | None, encoder: Path | None = None) -> Ears | None:
    """Those of the model; None: it takes units, and there is no codec to make them. DataError for what is not its own.

    A model that hears frames needs no codec to hear.
    """
    if codec is not None:
        opened.made_with.require_codec(codec.identity.hash, codec.identity.name, str(opened.folder))
    if hears_frames(opened):
        return frame_ears(opened, encoder)
    return UnitEars(codec) if codec is not None else None
