"""Bias of synthetic data: in which respects it is not like real data, by how much, and where.

Respects: speakers (how unevenly they speak), length in words and in seconds, topics, words, runs of two and three
words; of unit sets, units, pairs of units, run lengths and length. What a side does not have (a text corpus has no
speakers) is left out, and said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_most.errors import DataError
from megatron_most.synthesize.bias_items import Item, Spoken, load_items, load_spoken
from megatron_most.synthesize.bias_measure import OTHER, Finding, Respect, conclude, js_divergence, measure
from megatron_most.synthesize.bias_topics import find_topics

_MOST_RUNS = 20_000
_FEWEST = 20  # items a side; below it chance explains anything
_MOST_SPEAKERS = 50


@dataclass(frozen=True, kw_only=True)
class BiasOptions:
    """How the comparison is made."""

    sample: int = 5000
    """Rows and utterances looked at on each side."""
    permutations: int = 100
    """Random deals of the rows, to know what chance does."""
    least: float = 0.02
    """Divergence in bits below which a difference is not worth speaking of, however sure."""
    topics: int = 12
    seed: int = 0

    def check(self) -> None:
        for name, least in (("sample", _FEWEST), ("permutations", 100), ("topics", 2)):
            if getattr(self, name) < least:
                raise DataError(f"--{name} {getattr(self, name)}: give {least} or more")
        if not 0 <= self.least <= 1:
            raise DataError(f"--least {self.least}: a divergence is 0 to 1 bit")


@dataclass(frozen=True, kw_only=True)
class BiasReport:
    """All findings of one comparison."""

    synthetic: list[str]
    real: list[str]
    num_items: tuple[int, int]
    num_spoken: tuple[int, int]
    findings: list[Finding]
    left_out: dict[str, str]
    """Respect -> why it could not be compared."""

    @property
    def biased(self) -> list[Finding]:
        return sorted((one for one in self.findings if one.is_biased), key=lambda one: -one.divergence)

    def verdict(self) -> str:
        named = ", ".join(f"{one.name} ({one.divergence:.3f} bit)" for one in self.biased)
        return f"synthetic data differs in {named}" if named else "no difference beyond chance"

    def lines(self) -> list[str]:
        """A table for the terminal."""
        rows = [f"{'respect':<16}{'divergence':>11}{'by chance':>11}  more in synthetic data"]
        for one in self.findings:
            more = "; ".join(f"{label} ({ours:.2%} : {theirs:.2%})" for label, ours, theirs in one.more[:3])
            rows.append(f"{one.name:<16}{one.divergence:>11.4f}{one.chance:>11.4f}  {'BIAS ' * one.is_biased}{more}")
        return rows + [f"{name:<16}{'-':>11}{'-':>11}  {why}" for name, why in self.left_out.items()]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    synthetic: Sequence[Path], real: Sequence[Path], synthetic_units: Sequence[Path], real_units: Sequence[Path],
    options: BiasOptions,
) -> BiasReport:  # fmt: skip
    """The report of two sides."""
    options.check()
    if bool(synthetic_units) != bool(real_units):
        raise DataError("--synthetic-units and --real-units belong together: give both, or neither")
    ours, theirs = load_items(synthetic, options.sample), load_items(real, options.sample)
    _enough(ours, theirs, "rows")
    items, left_out, findings = [*ours, *theirs], {}, []
    if all(any(item.speaker for item in side) for side in (ours, theirs)):
        findings.append(_speakers(ours, theirs, options))
    else:
        left_out["speakers"] = "a side names no speakers"
    respects = [_lengths(items, len(ours))]
    if all(item.seconds for item in items):
        respects.append(_seconds(items, len(ours)))
    else:
        left_out["seconds"] = "a side has no speech in its manifests"
    respects.append(_topics(items, len(ours), options))
    respects += [_runs(items, len(ours), n) for n in (1, 2, 3)]
    spoken: tuple[list[Spoken], list[Spoken]] = ([], [])
    if synthetic_units:
        spoken = _load_both(synthetic_units, real_units, options)
        respects += _unit_respects([*spoken[0], *spoken[1]], len(spoken[0]))
    else:
        left_out["units"] = "no unit sets given"
    findings += [measure(respect, options.permutations, options.least, options.seed) for respect in respects]
    return BiasReport(
        synthetic=[path.name for path in synthetic],
        real=[path.name for path in real],
        num_items=(len(ours), len(theirs)),
        num_spoken=(len(spoken[0]), len(spoken[1])),
        findings=findings,
        left_out=left_out,
    )


def _load_both(ours: Sequence[Path], theirs: Sequence[Path], options: BiasOptions) -> tuple[list[Spoken], list[Spoken]]:
    (first, one), (second, other) = load_spoken(ours, options.sample), load_spoken(theirs, options.sample)
    assert one is not None and other is not None, "both sides have unit sets"
    one.codec.require_same(other.codec, str(one.path), str(other.path))
    _enough(first, second, "utterances with units")
    return first, second


def _enough(ours: Sequence[object], theirs: Sequence[object], what: str) -> None:
    if min(len(ours), len(theirs)) < _FEWEST:
        raise DataError(
            f"{len(ours)} synthetic and {len(theirs)} real {what}: too few to compare; give {_FEWEST} or more of each"
        )


def _speakers(ours: Sequence[Item], theirs: Sequence[Item], options: BiasOptions) -> Finding:
    """Voices are never the same ones, so it is their shares by rank that are compared: does one voice say it all?

    By chance: the real side's rows drawn again, as many as there are synthetic ones.
    """
    named = [[item.speaker for item in side if item.speaker] for side in (ours, theirs)]
    p, q = (_ranked(Counter(side)) for side in named)
    draw = np.random.Generator(np.random.PCG64(options.seed))
    _, real = np.unique(np.array(named[1]), return_inverse=True)
    by_chance = []
    for _ in range(options.permutations):
        again = [real[draw.integers(len(real), size=len(side))] for side in named]
        by_chance.append(js_divergence(*(_ranked(Counter(side.tolist())) for side in again)))
    labels = [f"speaker {rank} by rank" for rank in range(1, _MOST_SPEAKERS + 1)] + [OTHER]
    about = "rank of a speaker by number of rows"
    return conclude("speakers", about, p, q, labels, by_chance, options.least, True)


def _ranked(counts: Counter[Any]) -> NDArray[np.float64]:
    ranked = sorted(counts.values(), reverse=True)
    top = ranked[:_MOST_SPEAKERS]
    return np.array(top + [0] * (_MOST_SPEAKERS - len(top)) + [sum(ranked[_MOST_SPEAKERS:])], np.float64)


def _lengths(items: Sequence[Item], ours: int) -> Respect:
    pairs = [(number, len(turn)) for number, item in enumerate(items) for turn in item.turns if turn]
    return _binned("length", "words of a turn or utterance", pairs, ours, len(items))


def _seconds(items: Sequence[Item], ours: int) -> Respect:
    pairs = [(number, item.seconds or 0.0) for number, item in enumerate(items)]
    return _binned("seconds", "seconds of an utterance", pairs, ours, len(items))


def _binned(name: str, about: str, pairs: Iterable[tuple[int, float]], ours: int, count: int) -> Respect:
    """Lengths in half octaves."""
    item, value = (np.array(column) for column in zip(*pairs, strict=True))
    bins = np.floor(2 * np.log2(np.maximum(value, 0.25))).astype(np.int64)
    low = int(bins.min())
    edges = 2.0 ** (np.arange(low, int(bins.max()) + 2) / 2)
    labels = [f"{a:.3g} to {b:.3g}" for a, b in zip(edges, edges[1:], strict=False)]
    return Respect(
        name=name, about=about, item=item.astype(np.int64), category=bins - low, labels=labels, num_synthetic=ours,
        num_items=count, is_ordered=True,
    )  # fmt: skip


def _topics(items: Sequence[Item], ours: int, options: BiasOptions) -> Respect:
    texts = [[word for turn in item.turns for word in turn] for item in items]
    topic, names = find_topics(texts, options.topics, options.seed)
    return Respect(
        name="topics", about="clusters of rows by their words", item=np.arange(len(items)), category=topic,
        labels=names, num_synthetic=ours, num_items=len(items),
    )  # fmt: skip


def _runs(items: Sequence[Item], ours: int, n: int) -> Respect:
    runs = (
        (number, " ".join(run))
        for number, item in enumerate(items)
        for turn in item.turns
        for run in zip(*(turn[i:] for i in range(n)), strict=False)
    )
    name = {1: "words", 2: "runs of two", 3: "runs of three"}[n]
    return _named(name, "words" if n == 1 else f"runs of {n} words", list(runs), ours, len(items))


def _named(name: str, about: str, pairs: Sequence[tuple[int, str]], ours: int, count: int) -> Respect:
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
        num_items=count,
    )


def _unit_respects(spoken: Sequence[Spoken], ours: int) -> list[Respect]:
    owner = np.repeat(np.arange(len(spoken)), [len(one.units) for one in spoken])
    units = np.concatenate([one.units for one in spoken])
    size = int(units.max()) + 1
    is_same = owner[1:] == owner[:-1]
    pairs = (units[:-1] * size + units[1:])[is_same]
    known, category = np.unique(pairs, return_inverse=True)
    frames = np.concatenate([one.frames for one in spoken]).astype(np.float64)
    shared: dict[str, Any] = {"num_synthetic": ours, "num_items": len(spoken)}
    lengths = [(number, float(len(one.units))) for number, one in enumerate(spoken)]
    return [
        Respect(name="units", about="units", item=owner, category=units, labels=[f"[Hu{u}]" for u in range(size)],
                **shared),
        Respect(name="unit pairs", about="units that follow one another", item=owner[1:][is_same], category=category,
                labels=[f"[Hu{pair // size}][Hu{pair % size}]" for pair in known.tolist()], **shared),
        _binned("unit runs", "frames that a unit lasts", zip(owner.tolist(), frames, strict=True), ours, len(spoken)),
        _binned("unit lengths", "units of an utterance", lengths, ours, len(spoken)),
    ]  # fmt: skip
