"""Vocoder: units in, a wave out; and which codec's units.

A vocoder of another codec would say something else in a clear voice, so `require_codec` compares hashes. Two kinds:
codebook.py, fitted in seconds, and hifigan.py, trained or imported. Units come merged, as models write them: without
durations each unit is one run, whose length the vocoder predicts. Its folder: vocoder_files.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from megatron_most.errors import DataError
from megatron_most.speech.codec import CodecIdentity

_MAX_FRAMES = 1 << 18  # of 40 ms: almost three hours, beyond which durations are wrong

Units = Sequence[int] | np.ndarray


class Vocoder(Protocol):
    """Speaks the units of one codec, as mono float32 in -1..1."""

    @property
    def codec(self) -> CodecIdentity: ...

    @property
    def codec_hash(self) -> str: ...

    @property
    def sample_rate(self) -> int: ...

    @property
    def num_speakers(self) -> int: ...

    def speak(self, units: Units, durations: Units | None = None, speaker: int = 0) -> np.ndarray:
        """The wave of runs of units. `durations` are frames of each run; without them they are predicted."""
        ...

    def stream(self, units: Iterable[int], speaker: int = 0) -> Iterator[np.ndarray]:
        """The same wave in pieces, as units come; joined they differ from `speak` by rounding alone."""
        ...


class StorableVocoder(Vocoder, Protocol):
    """A vocoder that `save_vocoder` can keep."""

    @property
    def kind(self) -> str: ...

    def settings(self) -> dict[str, Any]:
        """JSON values from which, with the arrays, it can be made again."""
        ...

    def arrays(self) -> dict[str, np.ndarray]: ...


def require_codec(vocoder: Vocoder, codec: CodecIdentity | str, where: str = "these units") -> None:
    """DataError unless the vocoder speaks units of this codec (an identity, or its hash)."""
    found = codec if isinstance(codec, str) else codec.hash
    if found != vocoder.codec_hash:
        named = f"hash {codec[:12]}" if isinstance(codec, str) else f"{codec.name} ({codec.hash[:12]})"
        raise DataError(
            f"{where}: of the codec {named}, but the vocoder speaks units of {vocoder.codec.name} "
            f"({vocoder.codec_hash[:12]}); give the vocoder that was made for this codec"
        )


def checked_runs(
    units: Units, durations: Units | None, num_units: int, *, place: int = 0, max_frames: int = _MAX_FRAMES
) -> tuple[np.ndarray, np.ndarray | None]:
    """Units and durations as int64. DataError where a unit is none of the codec's, or a duration cannot be; `place` is
    that of the first unit.
    """
    runs = _integers(units, "units")
    if not len(runs):
        raise DataError("no units: there is nothing to say")
    if len(wrong := np.flatnonzero((runs < 0) | (runs >= num_units))):
        at = int(wrong[0])
        raise DataError(f"unit {runs[at]} at place {place + at}: the codec has units 0..{num_units - 1}")
    if len(runs) > max_frames:
        raise DataError(f"{len(runs)} units in one piece; at most {max_frames}: speak them in parts, or stream them")
    if durations is None:
        return runs, None
    frames = _integers(durations, "durations")
    if len(frames) != len(runs):
        raise DataError(f"{len(frames)} durations for {len(runs)} units; give one for each")
    if len(wrong := np.flatnonzero(frames < 1)):
        raise DataError(f"duration {frames[wrong[0]]} at place {wrong[0]}: a run has 1 frame or more")
    if frames.max() > max_frames or frames.sum() > max_frames:
        raise DataError(f"durations of {frames.sum()} frames together; at most {max_frames} in one piece")
    return runs, frames


def checked_speaker(speaker: int, num_speakers: int) -> int:
    """DataError for a voice that the vocoder has not."""
    if not 0 <= speaker < num_speakers:
        voices = "it has one voice, 0" if num_speakers == 1 else f"it has voices 0..{num_speakers - 1}"
        raise DataError(f"speaker {speaker}: no such voice; {voices}")
    return int(speaker)


def _integers(values: Units, what: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"{what}: shape {array.shape} of {array.dtype}; give one axis of whole numbers")
    return array.astype(np.int64)
