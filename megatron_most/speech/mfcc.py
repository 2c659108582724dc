"""MfccCodec: units are k-means clusters of MFCCs. Needs numpy and scipy only, and no download.

The first iteration of HuBERT learnt from such units. They follow sounds less well than HuBERT's own, and serve to try
the pipeline out and as a baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from megatron_most.errors import DataError
from megatron_most.speech.codec import CodecIdentity, hash_of
from megatron_most.speech.features import FEATURES_VERSION, SAMPLE_RATE, WIDTH, mfcc_features, min_samples
from megatron_most.speech.kmeans import fit_kmeans
from megatron_most.speech.quantiser import Quantiser
from megatron_most.speech.units import UnitSequence, merge_repeats


class MfccCodec:
    """Frames of `frame_s` seconds (0.02 or 0.04); `quantiser` has centroids of width 39."""

    kind = "mfcc-kmeans"

    def __init__(self, frame_s: float, quantiser: Quantiser, *, centred: bool = False, name: str | None = None) -> None:
        if quantiser.kind != "kmeans" or quantiser.width != WIDTH:
            raise DataError(f"mfcc codec: {quantiser.kind} of width {quantiser.width}; it takes centroids of {WIDTH}")
        self.min_samples = min_samples(frame_s)
        self.quantiser, self.centred = quantiser, centred
        facts = {"kind": self.kind, "features": FEATURES_VERSION, "frame_s": frame_s, "quantiser": quantiser.hash()}
        if centred:  # else the hash is that of codecs made before there was a choice
            facts["centred"] = True
        name = name or f"mfcc{'-centred' * centred}-{1 / frame_s:g}hz-{quantiser.num_units}"
        self.identity = CodecIdentity(name, hash_of(facts), quantiser.num_units, SAMPLE_RATE, frame_s)

    def settings(self) -> dict[str, Any]:
        """JSON values from which, with the quantiser, it can be made again."""
        return {"frame_s": self.identity.frame_s, **({"centred": True} if self.centred else {})}

    def encode(self, waves: Sequence[np.ndarray]) -> list[UnitSequence]:
        """Units of mono float32 waves at 16 kHz, in the order given."""
        frame_s = self.identity.frame_s
        features = (mfcc_features(wave, frame_s, centred=self.centred) for wave in waves)
        return [merge_repeats(self.quantiser.assign(one)[0], frame_s) for one in features]


def fit_mfcc_codec(
    waves: Iterable[np.ndarray],
    num_units: int = 500,
    frame_s: float = 0.04,
    seed: int = 0,
    *,
    centred: bool = False,
    name: str | None = None,
) -> MfccCodec:
    """Fit centroids to the MFCCs of waves, which are read once, best in shuffled order; too short ones are left out."""
    shortest = min_samples(frame_s)
    features = (mfcc_features(wave, frame_s, centred=centred) for wave in waves if len(wave) >= shortest)
    fit = fit_kmeans(features, num_units, seed=seed)
    return MfccCodec(frame_s, Quantiser.from_centroids(fit.centroids), centred=centred, name=name)
