"""Bias of synthetic data: in which respects it is not like real data, by how much, and where.

Respects: speakers (how unevenly they speak), length in words and in seconds, topics, words, runs of two and three
words; of dialogues, turns and each side's length; of unit sets, units, pairs of units, run lengths and length. What a
side does not have (a text corpus has no speakers) is left out, and said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_most.errors import DataError
from megatron_most.synthesize.bias_items import Item, Spoken, load_items, load_spoken
from megatron_most.synthesize.bias_measure import OTHER, Finding, Respect, conclude, js_divergence, measure
from megatron_most.synthesize.bias_respects import (
    SIDES,
    by_length,
    by_length_of,
    by_runs,
    by_seconds,
    by_topic,
    by_turns,
    by_units,
)

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
    respects = [by_length(items, len(ours))]
    of_dialogues, left_out_too = _of_dialogues(ours, theirs)
    respects += of_dialogues
    left_out |= left_out_too
    if all(item.seconds for item in items):
        respects.append(by_seconds(items, len(ours)))
    else:
        left_out["seconds"] = "a side has no speech in its manifests"
    respects.append(by_topic(items, len(ours), options.topics, options.seed))
    respects += [by_runs(items, len(ours), n) for n in (1, 2, 3)]
    spoken: tuple[list[Spoken], list[Spoken]] = ([], [])
    if synthetic_units:
        spoken = _load_both(synthetic_units, real_units, options)
        respects += by_units([*spoken[0], *spoken[1]], len(spoken[0]))
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


def _of_dialogues(ours: Sequence[Item], theirs: Sequence[Item]) -> tuple[list[Respect], dict[str, str]]:
    """How many turns, and how long each side's are, where enough of both sides are dialogues with words in them."""
    respects, left_out, items = [], {}, [*ours, *theirs]
    if min(sum(bool(item.roles) for item in side) for side in (ours, theirs)) >= _FEWEST:
        respects.append(by_turns(items, len(ours)))
    else:
        left_out["turns"] = f"a side has fewer than {_FEWEST} dialogues"
    for role in SIDES:
        if min(sum(bool(item.turns_of(role)) for item in side) for side in (ours, theirs)) >= _FEWEST:
            respects.append(by_length_of(role, items, len(ours)))
        else:
            left_out[f"{role} length"] = f"a side has fewer than {_FEWEST} dialogues with words of the {role}'s"
    return respects, left_out


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
