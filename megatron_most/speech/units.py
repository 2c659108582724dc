"""UnitSequence: the units of one utterance with repeats merged and how many frames each run had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_UNITS = 1 << 16


@dataclass(frozen=True, eq=False)
class UnitSequence:
    """Runs of units: `units[i]` was heard for `durations[i]` frames of `frame_s` seconds; neighbours differ."""

    units: np.ndarray
    """uint16"""
    durations: np.ndarray
    """uint32, at least 1"""
    frame_s: float

    def __post_init__(self) -> None:
        assert self.units.dtype == np.uint16 and self.durations.dtype == np.uint32, "units are uint16, durations uint32"
        assert self.units.shape == self.durations.shape and self.units.ndim == 1, "one duration for each unit"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UnitSequence):
            return NotImplemented
        same = np.array_equal(self.units, other.units) and np.array_equal(self.durations, other.durations)
        return same and self.frame_s == other.frame_s

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.units)

    @property
    def num_frames(self) -> int:
        """Frames before repeats were merged."""
        return int(self.durations.sum(dtype=np.int64))

    def per_frame(self) -> np.ndarray:
        """One unit a frame: the inverse of `merge_repeats`."""
        return np.repeat(self.units, self.durations)


def merge_repeats(units_per_frame: np.ndarray, frame_s: float) -> UnitSequence:
    """Merge runs of one unit and keep their lengths."""
    frames = np.asarray(units_per_frame)
    assert frames.ndim == 1, "one unit a frame"
    assert frames.size == 0 or (frames.min() >= 0 and frames.max() < MAX_UNITS), "units are 0..65535"
    starts = np.flatnonzero(np.concatenate([frames[:1] == frames[:1], frames[1:] != frames[:-1]]))
    durations = np.diff(np.append(starts, frames.size))
    return UnitSequence(frames[starts].astype(np.uint16), durations.astype(np.uint32), frame_s)
