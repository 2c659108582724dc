"""Utterances to show on a page: drawn by a hash of their ids, with the sound as their codec heard it and its units."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_most.data.augment import augmented, augmenter_of
from megatron_most.data.manifest import Manifest, parse_row
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import Utterance
from megatron_most.data.unit_set import UnitSet
from megatron_most.errors import DataError
from megatron_most.runtime import confine
from megatron_most.speech import AudioError, CodecIdentity, UnitSequence, read_span

_LONG_S, _CANDIDATES = 30.0, 64


@dataclass(frozen=True, eq=False)
class Example:
    """An utterance as its codec heard it, and what the codec made of it."""

    utterance: Utterance
    codec: CodecIdentity
    wave: np.ndarray
    """Mono float32 at the codec's rate."""
    units: UnitSequence


def find_examples(
    manifest: Manifest, units: UnitSet, audio_root: Path | None = None, count: int = 6, seed: int = 0
) -> tuple[Example, ...]:
    """Some utterances, the same for a seed whatever the shards; those over 30 s only where others do not suffice."""
    root = audio_root or manifest.audio_root
    if units.manifest_sha256 != manifest.header.sha256:
        raise DataError(f"{units.path}: units of another manifest than {manifest.folder}; give the two that belong")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give where the audio is with --audio-root")

    def hashed() -> Iterator[tuple[bytes, int, int, str]]:
        for s, shard in enumerate(units.shards):
            for i, id in enumerate(shard.ids()):
                yield hashlib.blake2b(f"{seed}/{id}".encode(), digest_size=8).digest(), s, i, id

    def seconds(candidate: tuple[bytes, int, int, str]) -> float:
        return max(_LONG_S, units.shards[candidate[1]].sequence(candidate[2]).num_frames * units.codec.frame_s)

    chosen = sorted(heapq.nsmallest(_CANDIDATES * count, hashed()), key=seconds)[:count]  # stable: else by hash
    places = {int(units.shards[s].rows[i]): (units.shards[s].sequence(i), id) for _, s, i, id in chosen}
    examples = []
    augmenter = augmenter_of(manifest)
    for number, line in manifest.lines(min(places, default=0), max(places, default=-1) + 1):
        if number in places:
            row, (sequence, id) = _utterance(manifest, number, line), places[number]
            if row.id != id:
                raise DataError(f"{units.path}: row {number + 1} is {id!r} there, but {row.id!r} in {manifest.folder}")
            rate = units.codec.sample_rate
            wave = augmented(augmenter, row, _read(root, row, rate), rate)
            examples.append(Example(row, units.codec, wave, sequence))
    return tuple(examples)


def _utterance(manifest: Manifest, number: int, line: bytes) -> Utterance:
    try:
        row = parse_row(manifest.header.kind, line)
    except RowError as error:
        raise DataError(f"{manifest.folder}, row {number + 1}: {error}") from error
    if not isinstance(row, Utterance):
        raise DataError(f"{manifest.folder}: a manifest of {manifest.header.kind}; examples are of speech")
    return row


def _read(root: Path, row: Utterance, rate: int) -> np.ndarray:
    try:
        return read_span(confine(root, row.audio), row.start, row.read_duration, sample_rate=rate)
    except AudioError as error:
        raise DataError(f"utterance {row.id!r}: {error}; give where the audio is with --audio-root") from error
