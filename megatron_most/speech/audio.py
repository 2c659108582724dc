"""Spans of sound files as mono float32 at the rate one asks for: `read_span(path, start_s, duration_s, sample_rate=…)`.

A span is cut at the file's own rate, then mixed to mono, then resampled, so a span of a long file has the very samples
of a file that holds only the span. It is found by seeking: nothing before it is decoded but a short pre-roll (ffmpeg.py
names the formats that cannot seek). The format is told by content, not by extension. Every fault is an `AudioError`
with one of the fixed `REASONS`; a span is never silently shorter than asked, but for 2 ms of rounding at the file's
end. Each call opens its own file, so threads may call at will.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_most.errors import DataError
from megatron_most.speech.containers import has_xing, identify, what_is_missing
from megatron_most.speech.ffmpeg import FfmpegFile
from megatron_most.speech.sndfile import DecodeError, SoundFile, UnseekableError

REASONS = (
    "missing file",
    "not a file",
    "permission denied",
    "empty file",
    "unreadable audio",
    "truncated audio",
    "not a number",
    "zero length",
    "beyond the end",
    "no such channel",
)
_SNDFILE_FORMATS = {"wav", "w64", "flac", "ogg", "aiff", "au", "caf", "nist"}
_LOWEST_RATE, _HIGHEST_RATE = 4000, 1_000_000  # what lies outside is a damaged header, or holds no speech


class AudioError(DataError):
    """A file or a span that cannot be read; `reason` is one of REASONS, `detail` names the file and the numbers."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:  # errors travel between processes
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds. `num_samples` counts one channel, at the file's rate."""

    sample_rate: int
    num_samples: int
    channels: int
    duration: float
    format: str


def probe(path: str | Path, *, most_s: float = math.inf) -> AudioInfo:
    """Look a file over. AudioError where it is damaged, cut off or holds no samples.

    At most the last samples are decoded, but for MP3 without a Xing header, raw AAC, WebM and AMR: those do not state
    their length, so it is counted, and no further than a little over `most_s`: whoever takes no more than that is told
    so at once, and not after hours of sound.
    """
    path = Path(path)
    with _open_file(path) as (file, found), _decoder(file, path, found) as sound:
        num_samples = sound.num_samples
        try:
            if num_samples is None:
                num_samples = sound.count_samples(most_s * sound.sample_rate)
            if num_samples <= 0:
                raise AudioError("empty file", f"{path}: it holds no samples")
            if missing := _what_is_missing(file, found, sound):
                raise AudioError("truncated audio", f"{path}: {missing}")
        except DecodeError as error:
            raise AudioError("unreadable audio", f"{path}: {error}") from error
        return AudioInfo(sound.sample_rate, num_samples, sound.channels, num_samples / sound.sample_rate, found)


def read_span(
    path: str | Path,
    start_s: float = 0.0,
    duration_s: float | None = None,
    *,
    sample_rate: int,
    channel: int | None = None,
) -> np.ndarray:
    """The span as mono float32 at `sample_rate`; no duration means up to the end, no channel the mean of all.

    From sample round(start_s * rate) on, round(duration_s * rate) samples are read, halves rounded up.
    """
    path = Path(path)
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise AudioError("zero length", f"{path}: a span of {duration_s} s")
    if not 0 <= start_s < math.inf:
        raise AudioError("beyond the end", f"{path}: a span that starts at {start_s} s")
    with _open_file(path) as (file, found), _decoder(file, path, found) as sound:
        rate = sound.sample_rate
        count = None if duration_s is None else to_samples(duration_s, rate)
        try:
            samples = _cut(sound, to_samples(start_s, rate), count)
            missing = _what_is_missing(file, found, sound) if duration_s is None else None
        except (DecodeError, AudioError) as error:
            # What the file itself says is missing explains more than where a span lies or a decoder stumbles.
            missing = _what_is_missing(file, found, sound)
            if missing is None and isinstance(error, AudioError):
                raise AudioError(error.reason, f"{path}: {error.detail}") from None
            if missing is None:
                raise AudioError("unreadable audio", f"{path}: {error}") from error
        if missing is not None:
            raise AudioError("truncated audio", f"{path}: {missing}")
    if channel is not None and not 0 <= channel < samples.shape[1]:
        raise AudioError("no such channel", f"{path}: channel {channel}; it has {samples.shape[1]}, counted from 0")
    with np.errstate(over="ignore", invalid="ignore"):  # of infinite samples; said below, in words
        wave = samples.mean(axis=1) if channel is None else samples[:, channel]
    if not np.isfinite(wave).all():
        raise AudioError("not a number", f"{path}: {np.count_nonzero(~np.isfinite(wave))} samples are NaN or infinite")
    return _resampled(np.ascontiguousarray(wave), rate, sample_rate)


def to_samples(seconds: float, rate: int) -> int:
    """Seconds as a number of samples, halves up; the noise of floats (1e-6 of a sample) decides nothing."""
    return math.floor(round(seconds * rate, 6) + 0.5)


def _cut(sound: SoundFile | FfmpegFile, start: int, count: int | None) -> np.ndarray:
    """The span at the file's rate, all channels, whole or an AudioError without the file's name."""
    rate, total = sound.sample_rate, sound.num_samples
    slack = max(1, to_samples(sound.end_slack_s, rate))
    span = f"a span from {start / rate:.3f} s " + ("to the end" if count is None else f"of {count / rate:.3f} s")
    if count == 0:
        raise AudioError("zero length", f"{span} is less than half a sample")
    if total == 0:
        raise AudioError("empty file", "it holds no samples")
    if total is not None and (start >= total or start + (count or 0) > total + slack):
        raise AudioError("beyond the end", f"{span}, and it has {total / rate:.3f} s")
    count = count if count is not None or total is None else total - start
    samples = sound.read(start, count)
    if len(samples) == 0 or len(samples) < (count or 0) - slack:
        if total is None:
            raise AudioError("beyond the end", f"{span}, and it has {(start + len(samples)) / rate:.3f} s or less")
        raise AudioError("truncated audio", f"{span}: {len(samples)} samples are there, the file promised {count}")
    return samples


def _what_is_missing(file: BinaryIO, found: str, sound: SoundFile | FfmpegFile) -> str | None:
    """How the file is shorter than it says. A FLAC says a number of samples, so its last one is read."""
    if found != "flac" or not isinstance(sound, SoundFile) or not sound.num_samples:
        return what_is_missing(file, found)
    try:
        with SoundFile(file) as again:  # after an error a decoder is of no use
            is_whole = len(again.read(sound.num_samples - 1, 1)) == 1
    except DecodeError:
        is_whole = False
    return None if is_whole else f"it says {sound.num_samples} samples, and the last is not there"


@contextmanager
def _open_file(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """The file, open, and its format."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe must not hold us
    except FileNotFoundError as error:
        raise AudioError("missing file", str(path)) from error
    except PermissionError as error:
        raise AudioError("permission denied", str(path)) from error
    except (OSError, ValueError) as error:  # too long a name, a loop of links, a zero byte
        raise AudioError("missing file", f"{path}: {error}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise AudioError("not a file", f"{path}: a folder, a pipe or a device")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if status.st_size == 0:
            raise AudioError("empty file", f"{path}: it has 0 bytes")
        try:
            found = identify(file, path.name)
        except OSError as error:
            raise AudioError("unreadable audio", f"{path}: {error}") from error
        if found is None:
            raise AudioError("unreadable audio", f"{path}: its first bytes are of no format known here")
        yield file, found


@contextmanager
def _decoder(file: BinaryIO, path: Path, found: str) -> Iterator[SoundFile | FfmpegFile]:
    """Whichever library reads this file. What libsndfile refuses (a codec inside a WAV, say), FFmpeg may know."""
    sound: SoundFile | FfmpegFile
    try:
        try:
            if found not in _SNDFILE_FORMATS:
                raise DecodeError("not for libsndfile")
            sound = SoundFile(file)
        except UnseekableError:
            raise
        except DecodeError:
            sound = FfmpegFile(path, found, is_length_stated=found == "mp3" and has_xing(file))
    except DecodeError as error:
        missing = what_is_missing(file, found)
        reason = "truncated audio" if missing else "unreadable audio"
        raise AudioError(reason, f"{path}: {missing or error}") from error
    with sound:
        if not _LOWEST_RATE <= sound.sample_rate <= _HIGHEST_RATE:
            wrong = f"{sound.sample_rate} samples a second; {_LOWEST_RATE} to {_HIGHEST_RATE} can be speech"
            raise AudioError("unreadable audio", f"{path}: {wrong}")
        yield sound


def _resampled(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return wave
    import soxr

    return soxr.resample(wave, rate, wanted, quality="HQ").astype(np.float32, copy=False)
