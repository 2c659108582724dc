"""From how much each expert is used to whose it becomes: sizes hold, equal use gives equal orders, choices are best."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.convert.partition import (
    Strategy,
    balance,
    group_lines,
    order_of,
    ours_by_theirs,
    prefer,
    read_sizes,
    require_choosable,
    sums_by_group,
)
from megatron_most.errors import ConfigError

STRATEGIES: tuple[Strategy, ...] = ("index", "alternate", "load", "affinity")
uses = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=24).map(np.array)


def split(count: int, share: float) -> dict[str, int]:
    first = min(max(1, round(share * count)), count - 1)
    return {"text": first, "audio": count - first}


@settings(max_examples=60, deadline=None)
@given(uses, uses, st.floats(0, 1))
def test_every_strategy_gives_each_group_its_size_and_the_same_order_again(
    text: np.ndarray, audio: np.ndarray, share: float
) -> None:
    count = min(len(text), len(audio))
    use, sizes = {"text": text[:count], "audio": audio[:count]}, split(count, share)
    for strategy in STRATEGIES:
        order = order_of(strategy, sizes, use)
        assert sorted(order) == list(range(count))
        assert order == order_of(strategy, sizes, {kind: u.copy() for kind, u in use.items()})
        halves = order[: sizes["text"]], order[sizes["text"] :]
        assert all(list(half) == sorted(half) for half in halves)  # inside a group theirs keep their sequence
        assert [order[ours] for ours in ours_by_theirs(order)] == list(range(count))


def test_index_is_theirs_and_alternate_deals_in_turns() -> None:
    assert order_of("index", {"text": 3, "audio": 5}, {}) == tuple(range(8))
    assert order_of("alternate", {"text": 4, "audio": 4}, {}) == (0, 2, 4, 6, 1, 3, 5, 7)
    assert order_of("alternate", {"text": 2, "audio": 6}, {}) == (1, 5, 0, 2, 3, 4, 6, 7)
    assert order_of("alternate", {"text": 1, "audio": 1, "wave": 2}, {}) == (1, 2, 0, 3)


@settings(max_examples=80, deadline=None)
@given(uses, st.floats(0, 1))
def test_two_groups_are_within_half_the_spread_of_an_even_load(load: np.ndarray, share: float) -> None:
    sizes = split(len(load), share)
    sums = sums_by_group(load, order_of("load", sizes, {"text": load}), list(sizes.values()))
    goal = load.sum() * sizes["text"] / len(load)
    assert abs(sums[0] - goal) <= (load.max() - load.min()) / 2 + 1e-6 * load.sum()
    assert sum(sums) == pytest.approx(load.sum())


def test_the_load_of_a_skewed_router_is_shared_out_to_a_thousandth() -> None:
    load = np.random.default_rng(0).zipf(1.6, 64).astype(float)
    load = np.minimum(load / load.sum(), 0.1)
    for sizes in ({"text": 32, "audio": 32}, {"text": 48, "audio": 16}, {"text": 20, "audio": 20, "wave": 24}):
        counts = list(sizes.values())
        found = sums_by_group(load, order_of("load", sizes, {"text": load}), counts)
        by_index = sums_by_group(load, tuple(range(64)), counts)
        for had, count in zip(found, counts, strict=True):
            assert abs(had / load.sum() - count / 64) < 1e-3
        assert max(abs(had / load.sum() - count / 64) for had, count in zip(by_index, counts, strict=True)) > 0.02


def test_a_pair_changes_places_where_dealing_alone_leaves_a_gap() -> None:
    load = np.array([8.0, 7.0, 6.0, 5.0, 4.0, 0.0])  # dealt: 8 + 5 + 4 against 7 + 6 + 0, or the like
    groups = np.array(balance(load, [3, 3]))
    assert abs(load[groups == 0].sum() - load[groups == 1].sum()) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8).flatmap(lambda n: st.tuples(*[st.lists(st.floats(0, 1), min_size=n, max_size=n)] * 2)),
       st.floats(0, 1))  # fmt: skip
def test_no_other_choice_gives_the_modalities_more_of_what_they_use(
    pair: tuple[list[float], list[float]], share: float
) -> None:
    text, audio = np.array(pair[0]), np.array(pair[1])
    sizes = split(len(text), share)
    order = order_of("affinity", sizes, {"text": text, "audio": audio})
    own = text[list(order[: sizes["text"]])].sum() + audio[list(order[sizes["text"] :])].sum()
    every = range(len(text))
    best = max(
        text[list(chosen)].sum() + audio[[e for e in every if e not in chosen]].sum()
        for chosen in itertools.combinations(every, sizes["text"])
    )
    assert own == pytest.approx(best, abs=1e-12)


def test_equal_use_goes_to_the_lower_number() -> None:
    assert prefer(np.zeros(6), [2, 4]) == [0, 0, 1, 1, 1, 1]
    flat = np.ones(8)
    assert order_of("affinity", {"text": 4, "audio": 4}, {"text": flat, "audio": flat}) == tuple(range(8))
    assert order_of("load", {"text": 4, "audio": 4}, {"text": flat}) == tuple(range(8))


def test_sizes_are_read_and_make_groups() -> None:
    assert read_sizes((), 64) == {"text": 32, "audio": 32}
    sizes = read_sizes((" text=5", "audio + wave = 3"), 8)
    assert sizes == {"text": 5, "audio+wave": 3} and group_lines(sizes) == ("text: 0-4", "audio+wave: 5-7")
    assert group_lines({"text": 1, "audio": 2}) == ("text: 0", "audio: 1-2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text=30 audio=32", "these are 62 experts, the model has 64; make them add up to 64"),
        ("text=32 speech=32", "there is no modality 'speech'; use text, audio, wave"),
        ("text=32 text=32", "'text' is named twice"),
        ("text=64 audio=0", "audio gets no expert"),
        ("text=32,audio=32", "cannot read 'text=32,audio=32'; write them like text=32 audio=32"),
        ("text", "cannot read 'text'"),
    ],
)
def test_sizes_that_cannot_be_are_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="^partition.sizes = ") as found:
        read_sizes(text.split(), 64)
    assert message in str(found.value)


def test_what_cannot_be_chosen_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="5 experts have no halves; say how many each gets"):
        read_sizes((), 5)
    with pytest.raises(ConfigError, match="one group has nothing to share out"):
        require_choosable("load", {"text+audio": 8})
    with pytest.raises(ConfigError, match="wave markers have no prompts; give wave to one of two groups"):
        require_choosable("affinity", {"text": 4, "audio": 2, "wave": 2})
    require_choosable("load", {"text": 4, "audio": 2, "wave": 2})
