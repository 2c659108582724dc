"""What is compared: rows of manifests and utterances of unit sets, an even sample of each side.

Rows are chosen by a hash of their ids, so the sample is the same whatever the order of the files.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megatron_most.data.manifest import open_manifest
from megatron_most.data.overlap import normalised_words
from megatron_most.data.rows import ChatRow, Row, TextRow, Utterance
from megatron_most.data.unit_set import UnitSet, open_units
from megatron_most.errors import DataError
from megatron_most.runtime import progress

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """One row: a dialogue, an utterance or a text."""

    turns: tuple[tuple[str, ...], ...]
    """Normalised words; an utterance or a text is one turn."""
    speaker: str | None = None
    seconds: float | None = None
    roles: tuple[str, ...] = ()
    """Of a dialogue, who says each turn."""

    def turns_of(self, role: str) -> list[tuple[str, ...]]:
        """What one side of a dialogue says, where it has words."""
        return [turn for turn, who in zip(self.turns, self.roles, strict=False) if turn and who == role]


@dataclass(frozen=True, slots=True)
class Spoken:
    """One utterance as units."""

    units: NDArray[np.int64]
    frames: NDArray[np.int64]
    """How long each lasts."""


def load_items(manifests: Sequence[Path], most: int) -> list[Item]:
    rows = ((row.id, row) for folder in manifests for row in open_manifest(folder).rows())
    chosen = _chosen(progress(rows, "rows", "row"), most)
    items = [_item(row) for row in chosen]
    if not any(turn for item in items for turn in item.turns):
        raise DataError(f"{', '.join(map(str, manifests))}: no text in any row; give manifests with transcripts")
    return items


def load_spoken(paths: Sequence[Path], most: int) -> tuple[list[Spoken], UnitSet | None]:
    """Utterances, and one of the sets, for its codec."""
    sets = [open_units(path) for path in paths]
    for other in sets[1:]:
        sets[0].codec.require_same(other.codec, str(sets[0].path), str(other.path))
    places = ((id, place) for n, found in enumerate(sets) for id, place in _places(found, n))
    spoken = []
    for number, shard, index in _chosen(places, most):
        sequence = sets[number].shards[shard].sequence(index)
        if len(sequence.units):
            spoken.append(Spoken(sequence.units.astype(np.int64), sequence.durations.astype(np.int64)))
    return spoken, sets[0] if sets else None


def _places(units: UnitSet, number: int) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for at, shard in enumerate(units.shards):
        for index, id in enumerate(shard.ids()):
            yield id, (number, at, index)


def _chosen(named: Iterable[tuple[str, T]], most: int) -> list[T]:
    """The `most` whose ids hash lowest, in that order."""

    def keyed() -> Iterator[tuple[bytes, int, T]]:
        for number, (id, value) in enumerate(named):
            yield hashlib.blake2b(id.encode(), digest_size=8).digest(), number, value

    return [value for _, _, value in heapq.nsmallest(most, keyed(), key=lambda entry: entry[:2])]


def _item(row: Row) -> Item:
    if isinstance(row, Utterance):
        return Item((_words(row.text or ""),), row.speaker, row.duration)
    if isinstance(row, TextRow):
        return Item((_words(row.text),))
    assert isinstance(row, ChatRow), "a row is speech, text or a chat"
    texts = ("".join(part for part in turn.parts if isinstance(part, str)) for turn in row.turns)
    return Item(tuple(_words(text) for text in texts), roles=tuple(turn.role for turn in row.turns))


def _words(text: str) -> tuple[str, ...]:
    return tuple(normalised_words(text))
