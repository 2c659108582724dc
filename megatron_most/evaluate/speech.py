"""Speech to evaluate on: waves, units and frames of a manifest's utterances or of sound files, each item with its own
faults.

Units come from a unit set (made beforehand) or from a codec, now; both are checked against the model's codec. Frames,
for models that hear them, come from the sound alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_most.converse import Ears, FrameEars, Heard
from megatron_most.data.manifest import Manifest
from megatron_most.data.rows import Utterance
from megatron_most.data.unit_set import UnitSet
from megatron_most.errors import DataError
from megatron_most.evaluate.options import MAX_SECONDS
from megatron_most.evaluate.task import Fault
from megatron_most.runtime import confine
from megatron_most.speech import AudioError, CodecIdentity, SpeechCodec, UnitSequence, probe, read_span


@dataclass(frozen=True)
class Span:
    """A stretch of a sound file."""

    path: Path
    start: float = 0.0
    duration: float | None = None
    """None: the whole file."""


def read_wave(span: Span, sample_rate: int, max_seconds: float = MAX_SECONDS) -> np.ndarray | Fault:
    """Mono float32, or why not. What is too long is not decoded to find that out."""
    try:
        duration = probe(span.path, most_s=max_seconds).duration if span.duration is None else span.duration
        if duration > max_seconds:
            return Fault("too long", f"{span.path}: {duration:g} s; at most {max_seconds:g} s (--max-seconds)")
        return read_span(span.path, span.start, span.duration, sample_rate=sample_rate)
    except AudioError as error:
        return Fault(error.reason, error.detail)


def encode(
    spans: Sequence[Span | Fault], codec: SpeechCodec, max_seconds: float = MAX_SECONDS
) -> list[UnitSequence | Fault]:
    """The units of each, or why it has none."""
    waves = _waves(spans, codec.identity.sample_rate, codec.min_samples, max_seconds)
    return [wave if isinstance(wave, Fault) else codec.encode([wave])[0] for wave in waves]


@dataclass(frozen=True, eq=False)
class Sound:
    """What a model is given of a sound."""

    heard: Heard
    seconds: float


def hear(spans: Sequence[Span | Fault], ears: Ears, max_seconds: float = MAX_SECONDS) -> list[Sound | Fault]:
    """What a model hears of each, or why it hears nothing."""
    waves = _waves(spans, ears.sample_rate, ears.min_samples, max_seconds)
    return [wave if isinstance(wave, Fault) else Sound(ears(wave), len(wave) / ears.sample_rate) for wave in waves]


def _waves(
    spans: Sequence[Span | Fault], sample_rate: int, min_samples: int, max_seconds: float
) -> list[np.ndarray | Fault]:
    found: list[np.ndarray | Fault] = []
    for span in spans:
        wave = span if isinstance(span, Fault) else read_wave(span, sample_rate, max_seconds)
        if isinstance(span, Span) and isinstance(wave, np.ndarray) and len(wave) < min_samples:
            wave = Fault("too short", f"{span.path}: {len(wave)} samples make no unit")
        found.append(wave)
    return found


@dataclass(frozen=True)
class Utterances:
    """A manifest of speech, opened for evaluation."""

    manifest: Manifest
    rows: tuple[Utterance, ...]
    units: UnitSet | None
    codec: SpeechCodec | None
    audio_root: Path
    max_seconds: float = MAX_SECONDS
    frames: FrameEars | None = None
    """How a model hears that is given frames in place of units."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """corpus/split."""
        return f"{self.manifest.header.corpus}/{self.manifest.header.split}"

    @property
    def identity(self) -> CodecIdentity:
        """Of the codec that makes or has made the units."""
        if self.units is not None:
            return self.units.codec
        assert self.codec is not None, "open_utterances asks for units or a codec"
        return self.codec.identity

    @property
    def where(self) -> str:
        """What the units come from, for errors."""
        return str(self.units.path) if self.units is not None else "--codec"

    def span(self, number: int) -> Span | Fault:
        """Where its sound is; a fault where that is too long."""
        row = self.rows[number]
        if row.duration > self.max_seconds:
            limit = f"at most {self.max_seconds:g} s (--max-seconds)"
            return Fault("too long", f"{row.id}: {row.duration:g} s; {limit}")
        try:
            return Span(confine(self.audio_root, row.audio), row.start, row.duration)
        except DataError:
            return Fault("outside the data root", row.audio)

    def sound(self, number: int) -> list[Path]:
        """Its file, where that may be read."""
        with contextlib.suppress(DataError):
            return [confine(self.audio_root, self.rows[number].audio)]
        return []

    def wave(self, number: int, sample_rate: int) -> np.ndarray | Fault:
        span = self.span(number)
        return span if isinstance(span, Fault) else read_wave(span, sample_rate, self.max_seconds)

    def units_of(self, numbers: Sequence[int]) -> list[UnitSequence | Fault]:
        """In the order of `numbers`."""
        found: list[UnitSequence | Fault] = []
        for number in numbers:
            span, id = self.span(number), self.rows[number].id
            if isinstance(span, Fault):
                found.append(span)
            elif self.units is not None:
                units = self.units.find(number)
                found.append(units or Fault("no units", f"{id}: see rejects.jsonl in {self.units.path}"))
            else:
                assert self.codec is not None, "open_utterances asks for units or a codec"
                found += encode([span], self.codec, self.max_seconds)
        return found

    def heard(self, numbers: Sequence[int]) -> list[UnitSequence | np.ndarray | Fault]:
        """What the model is given of them: units, or frames where it has ears for these."""
        if self.frames is None:
            return list(self.units_of(numbers))
        sounds = hear([self.span(number) for number in numbers], self.frames, self.max_seconds)
        return [sound if isinstance(sound, Fault) else np.asarray(sound.heard) for sound in sounds]


def open_utterances(
    manifest: Manifest, units: UnitSet | None, codec: SpeechCodec | None, audio_root: Path | None, max_seconds: float,
    limit: int | None = None, frames: FrameEars | None = None,
) -> Utterances:  # fmt: skip
    """DataError where the manifest is not of speech, the units are another's, or nothing is given to hear it by."""
    if manifest.header.kind != "speech":
        raise DataError(f"{manifest.folder}: a manifest of {manifest.header.kind}; this task needs one of speech")
    if units is None and codec is None and frames is None:
        raise DataError(f"{manifest.folder}: needs units; give --units (made beforehand) or --codec (to make them now)")
    if units is not None and units.manifest_sha256 != manifest.header.sha256:
        raise DataError(f"{units.path}: units of another manifest than {manifest.folder}; extract its own")
    if not 0 < max_seconds < float("inf"):
        raise DataError(f"--max-seconds {max_seconds:g}: give a length of time above 0")
    manifest.verify()
    rows = []
    for row in manifest.rows():
        assert isinstance(row, Utterance), "a speech manifest holds utterances"
        rows.append(row)
        if limit is not None and len(rows) == limit:
            break
    if not rows:
        raise DataError(f"{manifest.folder}: holds no utterance; give another manifest")
    return Utterances(manifest, tuple(rows), units, codec, audio_root or manifest.audio_root, max_seconds, frames)
