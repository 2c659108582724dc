"""A quantiser gives the exactly best unit, the lowest of equals, and never looks at the rest of the batch."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from megatron_most.errors import DataError
from megatron_most.speech import Quantiser, assign


def nearest(row: np.ndarray, centroids: np.ndarray) -> int:
    """In exact arithmetic."""
    distances = [
        sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(row, c, strict=True)) for c in centroids
    ]
    return distances.index(min(distances))


def test_the_nearest_centroid_is_found_where_fp32_cannot_tell() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(8).astype(np.float32) * 100  # far out: products are 1e4 times the differences
    centroids = (base + 1e-3 * rng.standard_normal((40, 8))).astype(np.float32)
    rows = (base + 1e-3 * rng.standard_normal((60, 8))).astype(np.float32)
    wanted = [nearest(row, centroids) for row in rows]
    assert assign(rows, centroids).tolist() == wanted
    plain = (rows @ centroids.T - 0.5 * (centroids**2).sum(axis=1)).argmax(axis=1)
    assert plain.tolist() != wanted  # the case is hard


def test_the_lowest_of_equals_wins() -> None:
    centroids = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1], [-1, 0]], np.float32)
    rows = np.array([[2.0, 0], [0, 2], [0, 0], [1, 1], [-3, 0]], np.float32)
    assert assign(rows, centroids).tolist() == [0, 1, 0, 0, 4]


@pytest.mark.parametrize("width", [39, 768])
def test_a_row_gets_one_unit_in_every_batch(width: int) -> None:
    rng = np.random.default_rng(1)
    centroids = rng.standard_normal((100, width)).astype(np.float32)
    centroids[50:] = centroids[:50] + 1e-6 * rng.standard_normal((50, width)).astype(np.float32)  # near ties everywhere
    rows = rng.standard_normal((600, width)).astype(np.float32)
    together = assign(rows, centroids)
    assert np.array_equal(together, np.concatenate([assign(row[None], centroids) for row in rows]))
    assert np.array_equal(together, np.concatenate([assign(part, centroids) for part in np.array_split(rows, 7)]))
    order = rng.permutation(600)
    assert np.array_equal(assign(rows[order], centroids), together[order])
    assert (together >= 50).any() and (together < 50).any()


def test_a_linear_layer_gives_its_largest_output() -> None:
    rng = np.random.default_rng(2)
    weight, bias = rng.standard_normal((30, 12)).astype(np.float32), rng.standard_normal(30).astype(np.float32)
    rows = rng.standard_normal((500, 12)).astype(np.float32)
    wanted = (rows.astype(np.float64) @ weight.T.astype(np.float64) + bias).argmax(axis=1)
    assert np.array_equal(Quantiser.from_linear(weight, bias).assign(rows)[0], wanted)


def test_a_firm_unit_survives_every_move_within_the_noise() -> None:
    rng = np.random.default_rng(3)
    quantiser = Quantiser.from_centroids(rng.standard_normal((50, 16)).astype(np.float32))
    rows = rng.standard_normal((4000, 16)).astype(np.float32)
    noise = 1e-2
    units, is_firm = quantiser.assign(rows, noise)
    assert 0.5 < is_firm.mean() < 0.999
    moved_any = np.zeros(len(rows), bool)
    for _ in range(10):
        step = rng.standard_normal(rows.shape)
        step *= (
            0.999 * noise * np.linalg.norm(rows, axis=1, keepdims=True) / np.linalg.norm(step, axis=1, keepdims=True)
        )
        moved = quantiser.assign((rows + step).astype(np.float32))[0]
        assert np.array_equal(moved[is_firm], units[is_firm])
        moved_any |= moved != units
    assert moved_any.any()  # the noise is large enough to matter


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_rows_that_are_not_numbers_are_refused(bad: float) -> None:
    rows = np.zeros((3, 2), np.float32)
    rows[1] = bad
    with pytest.raises(DataError, match="NaN or infinite"):
        assign(rows, np.array([[1, 1], [2, 2]], np.float32))


@pytest.mark.parametrize(
    "centroids",
    [np.zeros((0, 3)), np.zeros(3), np.array([[np.nan, 0.0]]), np.zeros((2, 2), int), np.zeros((70000, 1))],
)
def test_what_cannot_be_centroids_is_refused(centroids: np.ndarray) -> None:
    with pytest.raises(DataError, match="quantiser"):
        Quantiser.from_centroids(centroids)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(DataError, match="rows of 2"):
        assign(np.zeros((3, 5), np.float32), np.eye(2, dtype=np.float32))
