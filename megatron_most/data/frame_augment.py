"""What training does to continuous speech it hears: sound changed before its frames are made, then frames masked.

Only training documents are changed, and each anew in every epoch: all draws depend on seed, document, place in it and
epoch alone, so ranks that share a document, a resumed run and any number of threads see the same. The number of frames
never changes. Frames that were kept cannot have their sound changed, but are masked like others.
"""

# T frames, F width of a frame, d frames side by side (stacked)

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from megatron_most.config import AugmentConfig, SpecAugmentConfig
from megatron_most.runtime import get_logger
from megatron_most.speech import Augmenter, open_augmentation, stream

Key = tuple[str | int, ...]
_MOST_HIDDEN = 5  # one mask hides at most a fifth
warn = get_logger(__name__).warning


class FrameAugment:
    """Of a run's [data.augment] and [data.spec_augment]."""

    def __init__(self, sound: AugmentConfig, spec: SpecAugmentConfig) -> None:
        self._spec, self._sound = spec, None
        if sound.is_on:
            augmentation, bad = open_augmentation(sound)
            for path, wrong in bad:
                warn("%s: left out: %s", path, wrong)
            self._sound = Augmenter(augmentation)

    @property
    def is_on(self) -> bool:
        return self.changes_sound or self._spec.is_on

    @property
    def changes_sound(self) -> bool:
        """So frames have to be made anew each time."""
        return self._sound is not None

    @property
    def name(self) -> str:
        """Changes when any draw does."""
        sound = self._sound.augmentation.hash if self._sound else ""
        return f"{sound}/{sorted(asdict(self._spec).items())}"

    def wave(self, wave: np.ndarray, key: Key, rate: int) -> np.ndarray:
        return wave if self._sound is None else self._sound(wave, key, rate)

    def mask(self, features_TF: np.ndarray, key: Key, stack: int) -> np.ndarray:
        return mask_frames(features_TF, self._spec, key, stack) if self._spec.is_on else features_TF


def mask_frames(features_TF: np.ndarray, config: SpecAugmentConfig, key: Key, stack: int = 1) -> np.ndarray:
    """SpecAugment: stretches of frames and bands of features become the utterance's mean. Of stacked frames, the same
    features in each of the `stack`.
    """
    draw = stream(config.seed, key, "spec")
    num_frames, width = len(features_TF), features_TF.shape[1] // stack
    masked_TdF = features_TF.reshape(num_frames, stack, width).copy()
    mean_dF = masked_TdF.mean(axis=0, dtype=np.float32)
    for _ in range(config.time_masks):
        size = int(draw.integers(min(config.time_frames, num_frames // _MOST_HIDDEN) + 1))
        at = int(draw.integers(num_frames - size + 1))
        masked_TdF[at : at + size] = mean_dF
    for _ in range(config.feature_masks):
        size = int(draw.integers(int(config.feature_share * width) + 1))
        at = int(draw.integers(width - size + 1))
        masked_TdF[:, :, at : at + size] = mean_dF[:, at : at + size]
    return masked_TdF.reshape(features_TF.shape)
