"""The respects in which a bias report looks at rows and at unit sets, and what each takes for a category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from megatron_most.synthesize.bias_items import Item, Spoken
from megatron_most.synthesize.bias_measure import OTHER, Respect
from megatron_most.synthesize.bias_topics import find_topics

SIDES = ("user", "assistant")
_MOST_RUNS = 20_000
_MOST_TURNS = 64


def by_length(items: Sequence[Item], ours: int) -> Respect:
    pairs = [(number, len(turn)) for number, item in enumerate(items) for turn in item.turns if turn]
    return _binned("length", "words of a turn or utterance", pairs, ours)


def by_length_of(side: str, items: Sequence[Item], ours: int) -> Respect:
    """Of one side of dialogues: long questions and short answers are, both together, as long as the other way round."""
    pairs = [(number, len(turn)) for number, item in enumerate(items) for turn in item.turns_of(side)]
    return _binned(f"{side} length", f"words of a turn of the {side}'s", pairs, ours)


def by_turns(items: Sequence[Item], ours: int) -> Respect:
    """Each count is a category of its own. What stands before a dialogue, for the system, is no turn."""
    counts = [(number, sum(role in SIDES for role in item.roles)) for number, item in enumerate(items) if item.roles]
    number, count = (np.array(column, np.int64) for column in zip(*counts, strict=True))
    count = count.clip(1, _MOST_TURNS)
    low, high = int(count.min()), int(count.max())
    labels = [f"{n} turn{'s' * (n > 1)}{' or more' * (n == _MOST_TURNS)}" for n in range(low, high + 1)]
    return Respect(
        name="turns", about="turns of a dialogue, both sides'", item=number, category=count - low, labels=labels,
        num_synthetic=ours, is_ordered=True,
    )  # fmt: skip


def by_seconds(items: Sequence[Item], ours: int) -> Respect:
    pairs = [(number, item.seconds or 0.0) for number, item in enumerate(items)]
    return _binned("seconds", "seconds of an utterance", pairs, ours)


def _binned(name: str, about: str, pairs: Iterable[tuple[int, float]], ours: int) -> Respect:
    """Lengths in half octaves."""
    item, value = (np.array(column) for column in zip(*pairs, strict=True))
    bins = np.floor(2 * np.log2(np.maximum(value, 0.25))).astype(np.int64)
    low = int(bins.min())
    edges = 2.0 ** (np.arange(low, int(bins.max()) + 2) / 2)
    labels = [f"{a:.3g} to {b:.3g}" for a, b in zip(edges, edges[1:], strict=False)]
    return Respect(
        name=name, about=about, item=item.astype(np.int64), category=bins - low, labels=labels, num_synthetic=ours,
        is_ordered=True,
    )  # fmt: skip


def by_topic(items: Sequence[Item], ours: int, count: int, seed: int) -> Respect:
    texts = [[word for turn in item.turns for word in turn] for item in items]
    topic, names = find_topics(texts, count, seed)
    return Respect(
        name="topics", about="clusters of rows by their words", item=np.arange(len(items)), category=topic,
        labels=names, num_synthetic=ours,
    )  # fmt: skip


def by_runs(items: Sequence[Item], ours: int, n: int) -> Respect:
    runs = (
        (number, " ".join(run))
        for number, item in enumerate(items)
        for turn in item.turns
        for run in zip(*(turn[i:] for i in range(n)), strict=False)
    )
    name = {1: "words", 2: "runs of two", 3: "runs of three"}[n]
    return _named(name, "words" if n == 1 else f"runs of {n} words", list(runs), ours)


def _named(name: str, about: str, pairs: Sequence[tuple[int, str]], ours: int) -> Respect:
    """Categories by name; all but the most frequent are one."""
    ranked = sorted(Counter(label for _, label in pairs).items(), key=lambda entry: (-entry[1], entry[0]))
    # A run seen once tells nothing, and there are ever more of them: they would hide what is there.
    labels = [label for label, found in ranked if found > 1][:_MOST_RUNS] + [OTHER]
    place = {label: number for number, label in enumerate(labels)}
    other = len(labels) - 1
    return Respect(
        name=name,
        about=about,
        item=np.array([number for number, _ in pairs], np.int64),
        category=np.array([place.get(label, other) for _, label in pairs], np.int64),
        labels=labels,
        num_synthetic=ours,
    )


def by_units(spoken: Sequence[Spoken], ours: int) -> list[Respect]:
    owner = np.repeat(np.arange(len(spoken)), [len(one.units) for one in spoken])
    units = np.concatenate([one.units for one in spoken])
    size = int(units.max()) + 1
    is_same = owner[1:] == owner[:-1]
    pairs = (units[:-1] * size + units[1:])[is_same]
    known, category = np.unique(pairs, return_inverse=True)
    frames = np.concatenate([one.frames for one in spoken]).astype(np.float64)
    lengths = [(number, float(len(one.units))) for number, one in enumerate(spoken)]
    return [
        Respect(name="units", about="units", item=owner, category=units, labels=[f"[Hu{u}]" for u in range(size)],
                num_synthetic=ours),
        Respect(name="unit pairs", about="units that follow one another", item=owner[1:][is_same], category=category,
                labels=[f"[Hu{pair // size}][Hu{pair % size}]" for pair in known.tolist()],
                num_synthetic=ours),
        _binned("unit runs", "frames that a unit lasts", zip(owner.tolist(), frames, strict=True), ours),
        _binned("unit lengths", "units of an utterance", lengths, ours),
    ]  # fmt: skip
