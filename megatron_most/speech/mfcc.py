"""MfccCodec: units are k-means clusters of MFCCs. Needs numpy and scipy only, and no download.

The first iteration of HuBERT learnt from such units. They follow sounds less well than HuBERT's own, and serve to try
the pipeline out and as a baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from megatron_most.errors import DataError
from megatron_most.speech.codec import CodecIdentity, UnitSequence, hash_of, merge_repeats
from megatron_most.speech.features import FEATURES_VERSION, SAMPLE_RATE, WIDTH, mfcc_features, min_samples
from megatron_most.speech.kmeans import fit_kmeans
from megatron_most.speech.quantiser import Quantiser


class MfccCodec:
    """Frames of `frame_s` seconds (0.02 or 0.04); `quantiser` has centroids of width 39."""

    kind = "mfcc-kmeans"

    def __init__(self, frame_s: float, quantiser: Quantiser, *, name: str | None = None) -> None:
        if quantiser.kind != "kmeans" or quantiser.width != WIDTH:
            raise DataError(f"mfcc codec: {quantiser.kind} of width {quantiser.width}; it takes centroids of {WIDTH}")
        self.min_samples = min_samples(frame_s)
        self.quantiser = quantiser
        facts = {"kind": self.kind, "features": FEATURES_VERSION, "frame_s": frame_s, "quantiser": quantiser.hash()}
        name = name or f"mfcc-{1 / frame_s:g}hz-{quantiser.num_units}"
        self.identity = CodecIdentity(name, hash_of(facts), quantiser.num_units, SAMPLE_RATE, frame_s)

    def settings(self) -> dict[str, Any]:
        """JSON values from which, with the quantiser, it can be made again."""
        return {"frame_s": self.identity.frame_s}

    def encode(self, waves: Sequence[np.ndarray]) -> list[UnitSequence]:
        """Units of mono float32 waves at 16 kHz, in the order given."""
        frame_s = self.identity.frame_s
        return [merge_repeats(self.quantiser.assign(mfcc_features(wave, frame_s))[0], frame_s) for wave in waves]


def fit_mfcc_codec(
    waves: Iterable[np.ndarray], num_units: int = 500, frame_s: float = 0.04, seed: int = 0, *, name: str | None = None
) -> MfccCodec:
    """Fit centroids to the MFCCs of waves, which are read once, best in shuffled order; too short ones are left out."""
    shortest = min_samples(frame_s)
    fit = fit_kmeans((mfcc_features(wave, frame_s) for wave in waves if len(wave) >= shortest), num_units, seed=seed)
    return MfccCodec(frame_s, Quantiser.from_centroids(fit.centroids), name=name)
