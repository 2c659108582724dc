"""The shuffle is a bijection of any size, whose entries can be asked for alone, and is the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.data.shuffle import Permutation


def test_every_small_size_is_permuted() -> None:
    for n in range(1, 300):
        for seed in range(5):
            assert sorted(Permutation(n, seed)(range(n)).tolist()) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 70_000), key=st.lists(st.integers() | st.text(max_size=8), max_size=4))
def test_any_size_and_key_is_permuted(n: int, key: list[int | str]) -> None:
    seen = np.zeros(n, dtype=bool)
    seen[Permutation(n, *key)(np.arange(n))] = True
    assert seen.all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_entry_asked_for_alone_is_the_one_of_the_whole(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5000))
    permutation = Permutation(n, "one", n)
    some = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20))
    whole = permutation(range(n))
    assert permutation(some).tolist() == whole[some].tolist()
    assert permutation(np.array(some[:1])).tolist() == [whole[some[0]]]


def test_a_permutation_of_astronomic_size_costs_nothing() -> None:
    n = (1 << 62) - 3
    entries = Permutation(n, 1)(np.arange(n - 10_000, n))
    assert len(set(entries.tolist())) == 10_000 and 0 <= entries.min() and entries.max() < n
    assert entries.max() - entries.min() > n // 2


def test_order_is_another_one_for_each_part_of_the_key() -> None:
    n = 1000
    orders = [Permutation(n, *key)(range(n)) for key in ((1, "asr", 0), (2, "asr", 0), (1, "tts", 0), (1, "asr", 1))]
    orders.append(Permutation(n, 1, "asr", 0)(range(n)))
    same = [[int((a == b).sum()) for a in orders] for b in orders]
    assert same[0][4] == n
    assert max(same[a][b] for a in range(4) for b in range(a)) < 10  # 1 in the mean


def test_small_permutations_are_all_reached_about_equally_often() -> None:
    found: dict[tuple[int, ...], int] = {}
    for seed in range(3000):
        order = tuple(Permutation(3, seed)(range(3)).tolist())
        found[order] = found.get(order, 0) + 1
    assert len(found) == 6 and all(400 < count < 600 for count in found.values())  # 500, deviation 20


def test_no_order_is_left() -> None:
    n = 100_000
    entries = Permutation(n, 3)(np.arange(n))
    assert abs(np.corrcoef(entries, np.arange(n))[0, 1]) < 0.02  # deviation 0.003
    assert abs(np.corrcoef(entries[1:], entries[:-1])[0, 1]) < 0.02
    assert (entries == np.arange(n)).sum() < 10


def test_every_place_holds_every_entry_equally_often() -> None:
    n, orders = 257, 1500
    at_place = np.stack([Permutation(n, seed)(np.arange(n)) for seed in range(orders)])
    counts = np.stack([np.bincount(column, minlength=n) for column in at_place.T])
    freedom = (n - 1) ** 2
    chi_square = ((counts - orders / n) ** 2 / (orders / n)).sum()
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_the_order_of_a_key_never_changes() -> None:
    """Checkpoints rely on it: whoever changes these numbers must raise reader.STREAM_VERSION."""
    assert Permutation(10, 42, "asr", 0)(range(10)).tolist() == PINNED_10
    assert Permutation(1_000_003, 42, "tts", 7)([0, 1, 2, 1_000_002]).tolist() == PINNED_LARGE


def test_an_index_outside_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="outside"):
        Permutation(5, 1)(np.array([5]))


PINNED_10 = [8, 2, 4, 0, 9, 7, 3, 6, 5, 1]
PINNED_LARGE = [419492, 757398, 715082, 934455]
