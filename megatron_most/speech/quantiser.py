"""Quantiser: which of K units a feature is, the same in every batch.

    unit(x) = argmax_k (x . w_k + b_k)        k-means: w_k = c_k, b_k = -|c_k|^2 / 2; linear: as trained

The lowest k wins a tie. Scores are first computed by one matrix product in fp32, whose last bits may depend on how many
rows share it. So a row keeps that answer only where no other unit comes within the product's error bound; the few
others are scored again in fp64, each pair by itself. The answer is thus that of exact arithmetic on the fp32 features.
"""

# N rows, D width, K units, P pairs of a row and a unit that could be its answer

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_most.errors import DataError
from megatron_most.speech.units import MAX_UNITS

_CHUNK_ROWS = 4096
_CHUNK_PAIRS = 4096
_HALF_ULP = 2.0**-24


@dataclass(frozen=True, eq=False)
class Quantiser:
    """Weights and biases of the units, checked. Make one with `from_centroids` or `from_linear`."""

    kind: Literal["kmeans", "linear"]
    weight_KD: np.ndarray
    """float32"""
    bias_K: np.ndarray
    """float64; of k-means computed, of a linear layer as stored in float32"""

    @classmethod
    def from_centroids(cls, centroids_KD: np.ndarray) -> Quantiser:
        """Units are the nearest centroids, by Euclidean distance."""
        weight = _checked(centroids_KD, 2, "centroids")
        wide = weight.astype(np.float64)
        return cls("kmeans", weight, -0.5 * (wide * wide).sum(axis=1))

    @classmethod
    def from_linear(cls, weight_KD: np.ndarray, bias_K: np.ndarray) -> Quantiser:
        """Units are the largest outputs of a linear layer."""
        weight, bias = _checked(weight_KD, 2, "weight"), _checked(bias_K, 1, "bias")
        if len(bias) != len(weight):
            raise DataError(f"quantiser: {len(weight)} rows of weight but {len(bias)} biases; they go together")
        return cls("linear", weight, bias.astype(np.float64))

    @property
    def num_units(self) -> int:
        return len(self.weight_KD)

    @property
    def width(self) -> int:
        """Of the features it takes."""
        return self.weight_KD.shape[1]

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file holds: `centroids`, or `weight` and `bias`; float32."""
        if self.kind == "kmeans":
            return {"centroids": self.weight_KD}
        return {"weight": self.weight_KD, "bias": self.bias_K.astype(np.float32)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Quantiser:
        """The inverse of `arrays`."""
        if set(arrays) == {"centroids"}:
            return cls.from_centroids(arrays["centroids"])
        if set(arrays) == {"weight", "bias"}:
            return cls.from_linear(arrays["weight"], arrays["bias"])
        raise DataError(f"quantiser: arrays {sorted(arrays)}; there should be `centroids`, or `weight` and `bias`")

    def hash(self) -> str:
        """SHA-256 of kind, shapes and numbers."""
        digest = hashlib.sha256(self.kind.encode())
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name}{array.shape}".encode() + np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()

    def assign(self, features_ND: np.ndarray, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """The unit of each row (int64), and whether it is firm: the same for any x' with |x' - x| <= noise |x|."""
        features_ND = np.ascontiguousarray(features_ND, dtype=np.float32)
        if features_ND.ndim != 2 or features_ND.shape[1] != self.width:
            raise DataError(f"features of shape {features_ND.shape}; the quantiser takes rows of {self.width}")
        units = np.empty(len(features_ND), np.int64)
        is_firm = np.ones(len(features_ND), bool)
        for at in range(0, len(features_ND), _CHUNK_ROWS):
            rows = slice(at, at + _CHUNK_ROWS)
            self._assign_chunk(features_ND[rows], noise, units[rows], is_firm[rows])
        return units, is_firm

    def margin(self, norms_N: np.ndarray, noise: float) -> np.ndarray:
        """How far the second best fp32 score must stay behind for the best to be sure, given the rows' norms."""
        largest = float(np.sqrt((self.weight_KD.astype(np.float64) ** 2).sum(axis=1).max()))
        error = (self.width + 4) * _HALF_ULP * (norms_N * largest + np.abs(self.bias_K).max())
        return 2 * error + 2 * noise * norms_N * largest

    def _assign_chunk(self, x_ND: np.ndarray, noise: float, units_N: np.ndarray, is_firm_N: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # said below, in words
            scores_NK = x_ND @ self.weight_KD.T + self.bias_K.astype(np.float32)
        if not np.isfinite(scores_NK).all():
            raise DataError("features hold NaN or infinite numbers, or are too large for fp32")
        norms_N = np.sqrt(np.einsum("nd,nd->n", x_ND, x_ND, dtype=np.float64))
        units_N[:] = scores_NK.argmax(axis=1)
        best_N = np.take_along_axis(scores_NK, units_N[:, None], axis=1)[:, 0]
        is_close_NK = scores_NK >= (best_N - self.margin(norms_N, noise))[:, None]
        for n in np.flatnonzero(is_close_NK.sum(axis=1) > 1):
            close_P = np.flatnonzero(is_close_NK[n])
            exact_P = np.concatenate(
                [self._exact(x_ND[n], close_P[i : i + _CHUNK_PAIRS]) for i in range(0, len(close_P), _CHUNK_PAIRS)]
            )
            top = int(exact_P.argmax())  # the first of equals
            units_N[n] = close_P[top]
            if noise:
                apart_P = np.linalg.norm(self.weight_KD[close_P] - self.weight_KD[close_P[top]], axis=1)
                gap_P = exact_P[top] - exact_P
                others = np.arange(len(close_P)) != top
                is_firm_N[n] = bool((gap_P > noise * norms_N[n] * apart_P)[others].all())

    def _exact(self, x_D: np.ndarray, units_P: np.ndarray) -> np.ndarray:
        products = self.weight_KD[units_P].astype(np.float64) * x_D.astype(np.float64)
        return products.sum(axis=1) + self.bias_K[units_P]


def _checked(array: np.ndarray, ndim: int, name: str) -> np.ndarray:
    """A float32 copy. DataError where the array cannot be what it is said to be."""
    array = np.asarray(array)
    if array.ndim != ndim or array.dtype.kind != "f" or 0 in array.shape:
        raise DataError(f"quantiser: {name} of shape {array.shape}, {array.dtype}; give {ndim} axes of floats")
    if len(array) > MAX_UNITS:
        raise DataError(f"quantiser: {len(array)} units; at most {MAX_UNITS} fit their 16 bits")
    array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"quantiser: {name} holds NaN or infinite numbers; the file is damaged")
    return array
