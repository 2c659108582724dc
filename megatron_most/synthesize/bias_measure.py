"""How far two sets are apart in one respect, and whether chance alone could have done it.

A respect turns every item into categories: (item, category) pairs. With p and q the shares of categories on the two
sides and m their mean, the distance is the Jensen-Shannon divergence in bits,
JS = H(m) - (H(p) + H(q)) / 2, between 0 (alike) and 1 (nothing in common).
Small sets differ by chance, so JS is set against what it is when whole items are dealt to the sides at random: those
that have a category in this respect, as many to a side as it has of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]
OTHER = "(all others)"
"""The category of what is too rare for one of its own; it is counted, and never named as what differs."""
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Respect:
    """One way to look at items. Synthetic items come first."""

    name: str
    about: str
    """What a category is, in words."""
    item: NDArray[np.int64]
    category: NDArray[np.int64]
    labels: Sequence[str]
    num_synthetic: int
    is_ordered: bool = False
    """Categories follow one another, as lengths do: they are drawn as a curve."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found in one respect."""

    name: str
    about: str
    divergence: float
    """JS, in bits."""
    chance: float
    """Its 99th percentile where items are dealt at random."""
    is_biased: bool
    synthetic: list[float]
    """Shares of the categories, in the order of `labels`."""
    real: list[float]
    labels: list[str]
    is_ordered: bool
    more: list[tuple[str, float, float]]
    """(category, share in synthetic, share in real) that add most to the divergence, with more in synthetic data."""
    less: list[tuple[str, float, float]]


def js_divergence(p: Counts, q: Counts) -> float:
    """In bits, of counts or shares."""
    return float(_terms(p, q).sum())


def _terms(p: Counts, q: Counts) -> Counts:
    """What each category adds to the divergence."""
    p, q = p / max(p.sum(), 1e-300), q / max(q.sum(), 1e-300)
    m = (p + q) / 2

    def against(one: Counts) -> Counts:
        ratio = np.divide(one, m, out=np.ones_like(m), where=(one > 0) & (m > 0))
        return one * np.log2(ratio) / 2

    return against(p) + against(q)


def measure(respect: Respect, permutations: int, least: float, seed: int) -> Finding:
    """The finding of one respect."""
    size = len(respect.labels)
    # Where one side has few such items among many others, dealing all would give it more than it has, and chance less.
    num_of = np.bincount(respect.item)
    present = np.flatnonzero(num_of)
    total = np.bincount(respect.category, minlength=size).astype(np.float64)

    def split(sides: NDArray[np.bool_]) -> tuple[Counts, Counts]:
        is_synthetic = np.zeros(len(num_of), np.bool_)
        is_synthetic[present] = sides
        ours = np.bincount(respect.category[is_synthetic[respect.item]], minlength=size).astype(np.float64)
        return ours, total - ours

    sides = present < respect.num_synthetic
    p, q = split(sides)
    draw = np.random.Generator(np.random.PCG64(seed))
    by_chance = [js_divergence(*split(draw.permutation(sides))) for _ in range(permutations)]
    return conclude(respect.name, respect.about, p, q, respect.labels, by_chance, least, respect.is_ordered)


def conclude(
    name: str, about: str, p: Counts, q: Counts, labels: Sequence[str], by_chance: Sequence[float], least: float,
    is_ordered: bool,
) -> Finding:  # fmt: skip
    """A divergence is a bias where chance gives it in one of a hundred cases at most, and it is worth speaking of."""
    divergence, chance = js_divergence(p, q), float(np.quantile(by_chance, 0.99, method="higher"))
    terms = _terms(p, q)
    p, q = p / max(p.sum(), 1e-300), q / max(q.sum(), 1e-300)
    order = np.argsort(-terms, kind="stable")
    told = [(labels[i], _share(p[i]), _share(q[i]), p[i] > q[i]) for i in order if p[i] != q[i] and labels[i] != OTHER]
    more, less = ([row[:3] for row in told if row[3] == is_more][:_SHOWN] for is_more in (True, False))
    return Finding(
        name=name,
        about=about,
        divergence=round(divergence, 5),
        chance=round(chance, 5),
        is_biased=bool(divergence > chance and divergence >= least),
        synthetic=[_share(value) for value in p],
        real=[_share(value) for value in q],
        labels=list(labels),
        is_ordered=is_ordered,
        more=more,
        less=less,
    )


def _share(value: float) -> float:
    return round(float(value), 7)
