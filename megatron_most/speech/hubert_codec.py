"""HubertCodec: units from a layer of HuBERT, by k-means centroids or a linear layer; one wave, one answer.

In fp32 a batch never changes a unit. Rounding differs with the shape of a batch, so a frame whose two best units lie
within that rounding (hubert.NOISE) is settled by computing its wave alone, which is what batches of one do. In bf16
rounding is far larger, and a few units in a thousand may depend on the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from megatron_most.errors import DataError
from megatron_most.speech.codec import CodecIdentity, hash_of
from megatron_most.speech.hubert import NOISE, FeatureBatch, HubertFeatures
from megatron_most.speech.kmeans import fit_kmeans
from megatron_most.speech.quantiser import Quantiser
from megatron_most.speech.units import UnitSequence, merge_repeats


class HubertCodec:
    """`num_alone` counts the waves that were computed a second time, alone."""

    kind = "hubert"

    def __init__(self, features: HubertFeatures, quantiser: Quantiser, *, name: str | None = None) -> None:
        if quantiser.width != features.width:
            raise DataError(
                f"hubert codec: the quantiser takes features of {quantiser.width}, {features.model_name} gives "
                f"{features.width}; use the quantiser that was fitted on this model"
            )
        self.features, self.quantiser, self.num_alone = features, quantiser, 0
        self.min_samples = features.min_samples
        facts = {"kind": self.kind, "features": features.facts, "quantiser": quantiser.hash()}
        name = name or f"hubert-{1 / features.frame_s:g}hz-l{features.layer}-{quantiser.num_units}"
        self.identity = CodecIdentity(
            name, hash_of(facts), quantiser.num_units, features.sample_rate, features.frame_s, features.precision
        )

    def settings(self) -> dict[str, Any]:
        """JSON values from which, with the quantiser, it can be made again."""
        made_of = self.features
        return {
            "model": made_of.model_name,
            "revision": made_of.revision,
            "layer": made_of.layer,
            "normalise": made_of.normalise,
        }

    def encode(self, waves: Sequence[np.ndarray]) -> list[UnitSequence]:
        """Units of mono float32 waves at `identity.sample_rate`, in the order given; batched by length inside."""
        found: dict[int, np.ndarray] = {}
        for batch in self.features.batches(waves):
            is_exact = self.features.precision == "fp32" and len(batch.rows) > 1
            units_N, is_firm_N = self._assign(batch, NOISE if is_exact else 0.0)
            ends = np.cumsum(batch.num_frames)
            for row, start, end in zip(batch.rows, ends - batch.num_frames, ends, strict=True):
                if is_firm_N[start:end].all():
                    found[row] = units_N[start:end]
                else:
                    self.num_alone += 1
                    found[row] = self._assign(self.features.batch(waves, [row]), 0.0)[0]
        return [merge_repeats(found[row], self.identity.frame_s) for row in range(len(waves))]

    def _assign(self, batch: FeatureBatch, noise: float) -> tuple[np.ndarray, np.ndarray]:
        """As Quantiser.assign, but scores come from the device; only rows with a close second are brought back."""
        import torch

        x_ND, quantiser = batch.features_ND, self.quantiser
        with torch.inference_mode(), self.features.fp32():
            weight_KD, bias_K = self._on_device(x_ND.device)
            scores_NK = torch.addmm(bias_K, x_ND, weight_KD.T)
            best = scores_NK.topk(min(2, quantiser.num_units), dim=1)
            norms_N = x_ND.norm(dim=1).double().cpu().numpy()
        units_N = best.indices[:, 0].cpu().numpy()
        is_firm_N = np.ones(len(units_N), bool)
        gaps_N = (best.values[:, 0] - best.values[:, -1]).double().cpu().numpy()
        close = np.flatnonzero(~(gaps_N > quantiser.margin(norms_N, noise)))  # NaN is close: assign will refuse it
        if len(close):
            rows = x_ND[torch.from_numpy(close).to(x_ND.device)].cpu().numpy()
            units_N[close], is_firm_N[close] = quantiser.assign(rows, noise)
        return units_N, is_firm_N

    def _on_device(self, device: Any) -> tuple[Any, Any]:
        import torch

        if not hasattr(self, "_tensors"):
            weight, bias = self.quantiser.weight_KD, self.quantiser.bias_K.astype(np.float32)
            self._tensors = (torch.from_numpy(weight).to(device), torch.from_numpy(bias).to(device))
        return self._tensors


def fit_hubert_codec(
    waves: Iterable[np.ndarray],
    features: HubertFeatures,
    num_units: int = 500,
    seed: int = 0,
    *,
    name: str | None = None,
    group: int = 256,
) -> HubertCodec:
    """Fit centroids to a layer's features of waves, which are read once, best in shuffled order, `group` at a time."""

    def frames() -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        for wave in waves:
            if len(wave) >= features.min_samples:
                waiting.append(wave)
            if len(waiting) == group:
                yield from features(waiting)
                waiting = []
        yield from features(waiting)

    fit = fit_kmeans(frames(), num_units, seed=seed)
    return HubertCodec(features, Quantiser.from_centroids(fit.centroids), name=name)
