"""k-means for any number of hours in bounded memory: `fit_kmeans(batches, k, seed=…)`, and `assign`.

The first rows are kept as a sample: k-means++ picks k of them, Lloyd's steps settle those. Every later row is seen
once, in mini-batches of one size however the rows arrive: a centroid moves to the mean of all rows it ever won. A
centroid that wins (almost) nothing is put on a row far from its own, so no unit stays dead. Rows should come shuffled:
the sample is the start of the stream. One seed and one stream give one result.
"""

# N rows, D width, k centroids

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from megatron_most.errors import DataError
from megatron_most.speech.quantiser import Quantiser
from megatron_most.speech.units import MAX_UNITS

_SAMPLE_PER_CENTROID = 64
_MIN_SAMPLE = 8192
_LLOYD_STEPS = 30
_DEAD_SHARE = 0.02  # of the mean share: a centroid below it over _PATIENCE mini-batches is put elsewhere
_PATIENCE = 8


@dataclass(frozen=True, eq=False)
class KMeansFit:
    """Centroids (k, D) in float32 and how the fit went."""

    centroids: np.ndarray
    num_rows: int
    mean_sq_distance: float
    """Of the last rows seen to their centroids: the sample's, or the last mini-batches'."""
    num_reseeded: int


def assign(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid of each row, exact, the lowest of equals; rows never influence each other."""
    return Quantiser.from_centroids(centroids).assign(features)[0]


def fit_kmeans(
    batches: Iterable[np.ndarray], k: int, *, seed: int = 0, batch_rows: int = 8192, sample_rows: int | None = None
) -> KMeansFit:
    """Fit k centroids to the rows of all batches (each (rows, D), float32), which are read once."""
    if not 1 <= k <= MAX_UNITS:
        raise DataError(f"k-means with k = {k}; use 1 to {MAX_UNITS}")
    rng = np.random.default_rng(seed)
    sample_rows = max(_SAMPLE_PER_CENTROID * k, _MIN_SAMPLE) if sample_rows is None else max(sample_rows, k)
    blocks = _blocks(batches, sample_rows, batch_rows)
    sample_ND = next(blocks, np.zeros((0, 0), np.float32))
    num_rows = len(sample_ND)
    centers, counts, distance, reseeded = _lloyd(sample_ND, _plus_plus(sample_ND, k, rng), rng)
    share, seen = counts / max(num_rows, 1), 0
    for block in blocks:
        num_rows += len(block)
        units, sq_distances = _nearest(block, centers)
        won, sums = _sums(block, units, k)
        counts += won
        hit = won > 0
        centers[hit] += (sums[hit] - won[hit, None] * centers[hit]) / counts[hit, None]
        distance += (float(sq_distances.mean()) - distance) / _PATIENCE
        share += (won / len(block) - share) / _PATIENCE
        seen += 1
        if seen % _PATIENCE == 0:
            dead = np.flatnonzero(share < _DEAD_SHARE / k)
            reseeded += _reseed(centers, counts, dead, block, sq_distances, rng)
            share[dead] = 1 / k
    return KMeansFit(centers.astype(np.float32), num_rows, distance, reseeded)


def _blocks(batches: Iterable[np.ndarray], first: int, rest: int) -> Iterator[np.ndarray]:
    """The rows again in blocks of `first` and then `rest` rows; a shorter one only at the end."""
    kept: list[np.ndarray] = []
    have, size, width = 0, first, None
    for batch in batches:
        batch = np.asarray(batch, dtype=np.float32)
        if batch.ndim != 2 or (width is not None and batch.shape[1] != width):
            raise DataError(f"k-means: features of shape {batch.shape} after rows of {width}; give (rows, width)")
        if not np.isfinite(batch).all():
            raise DataError("k-means: features hold NaN or infinite numbers")
        width = batch.shape[1]
        while have + len(batch) >= size:
            yield np.concatenate([*kept, batch[: size - have]])
            batch, kept, have, size = batch[size - have :], [], 0, rest
        if len(batch):
            kept.append(batch.copy())  # a caller may reuse its array
            have += len(batch)
    if have:
        yield np.concatenate(kept)


def _plus_plus(sample_ND: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k rows, each drawn with probability proportional to its squared distance from those drawn before."""
    chosen: list[int] = []
    wide = sample_ND.astype(np.float64)
    sq_norms = np.einsum("nd,nd->n", wide, wide)
    nearest = np.full(len(sample_ND), np.inf)
    while len(chosen) < k:
        if not chosen:
            row = int(rng.integers(len(sample_ND))) if len(sample_ND) else -1
        else:
            edges = np.cumsum(nearest)
            row = int(np.searchsorted(edges, rng.random() * edges[-1], side="right")) if edges[-1] > 0 else -1
        if row < 0:
            raise DataError(
                f"k-means: k = {k}, but the first {len(sample_ND)} rows hold only {len(chosen)} different ones"
            )
        row = min(row, len(sample_ND) - 1)
        chosen.append(row)
        sq_distances = sq_norms - 2 * (sample_ND @ sample_ND[row]).astype(np.float64) + sq_norms[row]
        # Differences of large numbers: below their rounding a row counts as the same point.
        sq_distances[sq_distances < 1e-6 * (sq_norms + sq_norms[row])] = 0
        nearest = np.minimum(nearest, sq_distances)
    return wide[chosen]


def _lloyd(
    sample_ND: np.ndarray, centers: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Centroids settled on the sample, the rows each wins, the mean squared distance, and how many were reseeded."""
    before, reseeded = None, 0
    for _ in range(_LLOYD_STEPS):
        units, sq_distances = _nearest(sample_ND, centers)
        counts, sums = _sums(sample_ND, units, len(centers))
        if before is not None and np.array_equal(units, before):
            break
        before = units
        hit = counts > 0
        centers[hit] = sums[hit] / counts[hit, None]
        reseeded += _reseed(centers, counts, np.flatnonzero(~hit), sample_ND, sq_distances, rng)
    return centers, np.maximum(counts, 1.0), float(sq_distances.mean()), reseeded


def _nearest(rows_ND: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centroid of each row and the squared distance to it."""
    narrow = centers.astype(np.float32)
    units = assign(rows_ND, narrow)
    apart = rows_ND - narrow[units]
    return units, np.einsum("nd,nd->n", apart, apart, dtype=np.float64)


def _sums(rows_ND: np.ndarray, units: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """How many rows each centroid wins, and their sum, in float64."""
    order = np.argsort(units, kind="stable")
    counts = np.bincount(units, minlength=k).astype(np.float64)
    sums = np.zeros((k, rows_ND.shape[1]))
    hit = np.flatnonzero(counts)
    starts = np.concatenate([[0], np.cumsum(counts[hit])[:-1]]).astype(np.int64)
    sums[hit] = np.add.reduceat(rows_ND[order].astype(np.float64), starts, axis=0)
    return counts, sums


def _reseed(
    centers: np.ndarray,
    counts: np.ndarray,
    dead: np.ndarray,
    rows_ND: np.ndarray,
    sq_distances: np.ndarray,
    rng: np.random.Generator,
) -> int:
    """Put dead centroids on rows drawn, as in k-means++, by their squared distance from the nearest; how many."""
    sq_distances = sq_distances.copy()
    for done, centroid in enumerate(dead):
        edges = np.cumsum(sq_distances)
        if not edges[-1] > 0:
            return done
        row = min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(rows_ND) - 1)
        centers[centroid], counts[centroid] = rows_ND[row], 1.0
        apart = rows_ND - rows_ND[row]
        sq_distances = np.minimum(sq_distances, np.einsum("nd,nd->n", apart, apart, dtype=np.float64))
    return len(dead)
