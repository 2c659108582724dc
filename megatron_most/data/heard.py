"""Features computed from the audio itself, span by span, whenever they are asked for.

In: a span of a dataset's sidecar. Out: its frames, or a DataError that says which recording is gone, or has changed
since the dataset was built. Its size tells that; reading all sound for a hash would take longer than hearing it.
"""

# T frames, F width of a frame

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_most.data.spans import SpanTable
from megatron_most.errors import DataError
from megatron_most.runtime import confine
from megatron_most.speech import FrameSource, read_span, to_samples

Alter = Callable[[np.ndarray, int], np.ndarray]
"""What is done to a wave, given with its rate, before its frames are made."""
_SLACK_S = 0.005
"""A span may lack so much at its file's end, where durations were rounded; it is filled up with silence."""


class Features(Protocol):
    """Where features come from."""

    def features(self, number: int, table: SpanTable) -> np.ndarray:
        """[T, F] float32 of a span."""
        ...


class Heard:
    """Features computed from the audio, span by span, whenever they are asked for. Threads may ask at will."""

    def __init__(self, source: FrameSource, roots: Sequence[Path]) -> None:
        """`roots`: where recordings are looked for; the first that has one counts."""
        if not roots:
            raise DataError("no audio root to read sound from; give data.audio_roots (or --audio-root)")
        self._source, self._roots = source, [Path(root) for root in roots]
        for root in self._roots:
            if not root.is_dir():
                raise DataError(f"{root}: no such folder; give where the audio is (data.audio_roots, --audio-root)")
        self._seen: set[Path] = set()

    def features(self, number: int, table: SpanTable, alter: Alter | None = None) -> np.ndarray:
        span = table.span(number).audio
        path, rate = self._find(span.audio, span.size), self._source.identity.sample_rate
        wave = read_span(path, span.start, span.duration, sample_rate=rate)
        wanted = to_samples(span.duration, rate)
        if abs(len(wave) - wanted) > _SLACK_S * rate:
            raise DataError(f"{span.audio}: {len(wave)} samples where the span has {wanted}; build the dataset again")
        wave = np.pad(wave, (0, max(0, wanted - len(wave))))[:wanted]
        return self._source([wave if alter is None else alter(wave, rate)])[0]

    def _find(self, audio: str, size: int) -> Path:
        found: int | None = None
        for root in self._roots:
            path = confine(root, audio)
            if path in self._seen:
                return path
            try:
                found = path.stat().st_size
            except OSError:
                continue
            if found == size:
                self._seen.add(path)
                return path
        where = ", ".join(str(root) for root in self._roots)
        if found is None:
            raise DataError(f"{audio}: missing: not in {where}; give where it is (data.audio_roots, --audio-root)")
        raise DataError(
            f"{audio}: changed: {found} bytes in {where}, and {size} when the dataset was built; put back the "
            "recording, or build the dataset again"
        )
