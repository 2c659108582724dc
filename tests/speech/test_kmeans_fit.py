"""k-means finds what is there, in one pass, the same for one seed however the rows arrive."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from megatron_most.errors import DataError
from megatron_most.speech import assign, fit_kmeans


def clusters(num_rows: int, k: int, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around k points 10 apart or more, and the points."""
    rng = np.random.default_rng(seed)
    points = 10.0 * np.stack([rng.permutation(k) for _ in range(width)], axis=1)
    rows = points[rng.integers(0, k, num_rows)] + 0.5 * rng.standard_normal((num_rows, width))
    return rows.astype(np.float32), points


def pieces(rows: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    at = 0
    while at < len(rows):
        size = int(rng.integers(1, 900))
        yield rows[at : at + size]
        at += size


@pytest.mark.parametrize(("num_rows", "sample_rows"), [(3000, None), (30000, 1000)])
def test_planted_clusters_are_found(num_rows: int, sample_rows: int | None) -> None:
    rows, points = clusters(num_rows, 20)
    fit = fit_kmeans([rows], 20, seed=1, sample_rows=sample_rows, batch_rows=512)
    nearest = assign(points.astype(np.float32), fit.centroids)
    assert len(set(nearest)) == 20
    assert np.abs(fit.centroids[nearest] - points).max() < 0.3
    assert fit.num_rows == num_rows and fit.mean_sq_distance == pytest.approx(8 * 0.25, rel=0.1)


def test_centroids_of_what_never_comes_again_move_to_what_comes_later() -> None:
    rows, points = clusters(80000, 12)
    which = assign(rows, points.astype(np.float32))
    strange = 1e4 + 1e3 * np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    stream = np.concatenate([strange, rows[which < 6][:700], rows])  # the sample of 1000 sees half of the clusters
    fit = fit_kmeans([stream], 18, seed=0, sample_rows=1000, batch_rows=512)
    assert fit.num_reseeded > 0
    nearest = assign(points.astype(np.float32), fit.centroids)
    assert len(set(nearest)) == 12
    assert np.abs(fit.centroids[nearest] - points).max() < 2.0


def test_how_rows_are_cut_into_batches_changes_nothing_but_the_seed_does() -> None:
    rows, _ = clusters(20000, 30)
    fits = [fit_kmeans(pieces(rows, s), 16, seed=5, sample_rows=2048, batch_rows=700).centroids for s in (1, 2)]
    fits.append(fit_kmeans([rows], 16, seed=5, sample_rows=2048, batch_rows=700).centroids)
    assert np.array_equal(fits[0], fits[1]) and np.array_equal(fits[0], fits[2])
    assert not np.array_equal(fits[0], fit_kmeans([rows], 16, seed=6, sample_rows=2048, batch_rows=700).centroids)


def test_an_array_that_is_used_again_by_its_maker_is_read_in_time() -> None:
    rows, _ = clusters(5000, 10)

    def reused() -> Iterator[np.ndarray]:
        buffer = np.empty((50, 8), np.float32)
        for at in range(0, 5000, 50):
            buffer[:] = rows[at : at + 50]
            yield buffer

    assert np.array_equal(fit_kmeans(reused(), 10, seed=0).centroids, fit_kmeans([rows], 10, seed=0).centroids)


def test_every_centroid_wins_rows_even_where_many_rows_are_alike() -> None:
    rng = np.random.default_rng(0)
    rows = np.zeros((20000, 4), np.float32)
    rows[::2] = rng.standard_normal((10000, 4)) * 5
    fit = fit_kmeans([rows], 32, seed=0, sample_rows=4000, batch_rows=2000)
    assert (np.bincount(assign(rows, fit.centroids), minlength=32) > 0).all()


def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    rows, _ = clusters(8192, 8, width=16)
    peaks = []
    for repeats in (4, 16):
        tracemalloc.start()
        fit_kmeans((rows for _ in range(repeats)), 8, seed=0, sample_rows=4096, batch_rows=2048)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize(
    ("batches", "k", "told"),
    [
        ([], 4, "hold only 0 different"),
        ([np.ones((100, 3))], 4, "hold only 1 different"),
        ([np.eye(3)], 4, "hold only 3 different"),
        ([np.full((10, 3), np.nan)], 2, "NaN"),
        ([np.eye(3), np.eye(4)], 2, "after rows of 3"),
        ([np.ones(5)], 2, "shape"),
        ([np.eye(3)], 0, "k = 0"),
        ([np.eye(3)], 70000, "k = 70000"),
    ],
)
def test_what_cannot_be_fitted_is_refused(batches: list[np.ndarray], k: int, told: str) -> None:
    with pytest.raises(DataError, match=told):
        fit_kmeans(batches, k)
