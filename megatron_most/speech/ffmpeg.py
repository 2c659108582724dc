"""Decode what libsndfile does not: MP3, AAC and Opus in MP4 or WebM, G.722, AMR, by PyAV (FFmpeg).

MP3 comes here too: libmpg123 inside libsndfile writes to stderr, and its seeks in files of variable rate were seen to
land wrongly. A reader seeks 2 s ahead of the span and drops what comes before, so that a codec with a memory has it
filled; formats whose time stamps are too coarse to count samples (WebM, AMR, raw AAC) and G.722, whose memory is long,
are decoded from the start. So is the first minute of MP4: AAC fills some bands with random numbers, which after a seek
are other ones. FFmpeg is told the format and never guesses: guessing opens play lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from megatron_most.speech.sndfile import DecodeError

_FFMPEG_NAMES = {"m4a": "mov", "webm": "matroska", "g722": "g722", "amr": "amr", "asf": "asf", "aac": "aac"}
_FFMPEG_NAMES |= {"mp3": "mp3", "flac": "flac", "wav": "wav", "ogg": "ogg", "aiff": "aiff", "au": "au", "caf": "caf"}
_SEEKABLE = {"m4a", "mp3", "wav", "ogg", "aiff", "au", "caf"}
_STATES_LENGTH = {"m4a", "g722", "wav", "aiff", "au", "caf"}  # and mp3 where it has a Xing header
_PRE_ROLL_S = 2.0
_FROM_START_S = {"m4a": 60.0}


class FfmpegFile:
    """The first sound stream of a file, open. `num_samples` is None where the header does not say."""

    def __init__(self, path: Path, found: str, *, is_length_stated: bool = False) -> None:
        import av

        if found not in _FFMPEG_NAMES:
            raise DecodeError(f"no decoder for {found}")
        self._path, self._found, self._error = path, found, av.error.FFmpegError
        self.end_slack_s = 0.05 if found == "m4a" else 0.002  # MP4 headers count a coder's delay in or out
        try:
            self._container: Any = av.open(f"file:{path}", format=_FFMPEG_NAMES[found])
        except (av.error.FFmpegError, ValueError) as error:
            raise DecodeError(_short_message(error)) from error
        try:
            if not self._container.streams.audio:
                raise DecodeError("it has no sound stream")
            self._stream = stream = self._container.streams.audio[0]
            if stream.codec_context is None:
                raise DecodeError("its codec is unknown")
            self.sample_rate, self.channels = int(stream.rate or 0), int(stream.channels or 0)
            if not self.sample_rate or not self.channels:
                raise DecodeError("its sample rate or channels cannot be found")
            self.num_samples = None
            if stream.duration is not None and (is_length_stated or found in _STATES_LENGTH):
                self.num_samples = round(stream.duration * stream.time_base * self.sample_rate)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> FfmpegFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._container.close()

    def count_samples(self, most: float) -> int:
        """Samples of the whole file, by decoding it; where they are more than `most`, of its beginning."""
        total = 0
        for block, _ in self._blocks(0):
            total += len(block)
            if total > most:
                break
        return total

    def read(self, start: int, count: int | None) -> np.ndarray:
        """Samples [start, start + count) as float32 (samples, channels); fewer where the file ends before.

        A file is read, or counted, once: it does not go back.
        """
        kept = [np.zeros((0, self.channels), np.float32)]
        left = count
        for block, at in self._blocks(start):
            block = block[max(0, start - at) :][:left]
            kept.append(block)
            if left is not None:
                left -= len(block)
                if left == 0:
                    break
        return np.concatenate(kept)

    def _blocks(self, start: int) -> Iterator[tuple[np.ndarray, int]]:
        """Decoded blocks and the sample each begins at, from one at or before `start`."""
        stream, rate = self._stream, self.sample_rate
        origin = stream.start_time or 0
        ahead = start - int(_PRE_ROLL_S * rate)
        if self._found not in _SEEKABLE or ahead <= 0 or start < _FROM_START_S.get(self._found, 0.0) * rate:
            yield from self._blocks_from_here()
            return
        try:
            self._container.seek(origin + int(ahead / rate / stream.time_base), stream=stream, backward=True)
        except self._error as error:
            raise DecodeError(_short_message(error)) from error
        at: int | None = None
        for frame in self._frames(is_lenient=True):
            if at is None or at < start:  # up to the span the time stamps count, even over a gap
                if frame.pts is None:
                    break
                at = round((frame.pts - origin) * stream.time_base * rate)
                if at > start:
                    break
            block = self._samples(frame)
            yield block, at
            at += len(block)
        else:
            return
        # The seek landed too late or without a time stamp, as it can where an index is broken.
        with FfmpegFile(self._path, self._found) as again:
            yield from again._blocks_from_here()

    def _blocks_from_here(self) -> Iterator[tuple[np.ndarray, int]]:
        at = 0
        for frame in self._frames(is_lenient=False):
            block = self._samples(frame)
            yield block, at
            at += len(block)

    def _frames(self, is_lenient: bool) -> Iterator[Any]:
        """Decoded frames. Lenient: errors before the first frame pass, for a decoder may start amid a stream."""
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except self._error:
                    if not is_lenient:
                        raise
                    continue
                for frame in frames:
                    is_lenient = False
                    yield frame
        except self._error as error:
            raise DecodeError(_short_message(error)) from error

    def _samples(self, frame: Any) -> np.ndarray:
        """A frame as float32 (samples, channels) in -1..1."""
        if frame.sample_rate != self.sample_rate or frame.layout.nb_channels != self.channels:
            raise DecodeError("its sample rate or channels change on the way")
        values = frame.to_ndarray()
        if frame.format.is_planar:
            values = values.T
        values = values.reshape(-1, self.channels)
        if values.dtype == np.uint8:
            return (values.astype(np.float32) - 128) / 128
        if values.dtype.kind == "i":
            return (values / -float(np.iinfo(values.dtype).min)).astype(np.float32)
        return values.astype(np.float32, copy=False)


def _short_message(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
