"""Read what libsndfile reads well: WAV, FLAC, Ogg (Vorbis, Opus), AIFF, AU, CAF, NIST.

Its seeks there are exact, but for Opus: the decoder starts anew at each, and samples differ by up to 1e-3 of full scale
from those of one pass.

The file comes in open and is handed on by descriptor: given a name, soundfile would judge by its extension.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

_SAID_TO_SEEK = ("DWVW",)  # libsndfile says so and then fails
_UNKNOWN_LENGTH = 1 << 48  # libsndfile gives 2^63 - 1 for a FLAC that does not state its length


class DecodeError(Exception):
    """A decoder cannot open or read a file; the message is the library's."""


class UnseekableError(DecodeError):
    """A codec in which libsndfile cannot go to a place; another library is no way out."""


class SoundFile:
    """An open file. A length that the header does not state is a DecodeError: FFmpeg can count it."""

    end_slack_s = 0.002  # published durations are rounded to 1 ms, start and duration each

    def __init__(self, file: BinaryIO) -> None:
        import soundfile

        self._error = soundfile.LibsndfileError
        file.seek(0)  # libsndfile takes the file to begin where the descriptor stands
        try:
            self._sound: Any = soundfile.SoundFile(file.fileno(), closefd=False)
        except self._error as error:
            raise DecodeError(error.error_string) from error
        codec, container = str(self._sound.subtype), str(self._sound.format)
        if not self._sound.seekable() or codec.startswith(_SAID_TO_SEEK):
            self._sound.close()
            # FFmpeg reads GSM in a WAV; G.721 there it reads as another codec, without a word.
            kind = DecodeError if (container, codec) == ("WAV", "GSM610") else UnseekableError
            raise kind(f"{codec} inside {container} can be read from its start only; convert it")
        self.sample_rate, self.channels = int(self._sound.samplerate), int(self._sound.channels)
        self.num_samples: int | None = int(self._sound.frames)  # None, as in FfmpegFile, never happens here
        if self._sound.frames >= _UNKNOWN_LENGTH:
            self._sound.close()
            raise DecodeError("it does not state its length")

    def __enter__(self) -> SoundFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sound.close()

    def count_samples(self, most: float) -> int:
        """Samples of the whole file; libsndfile has them counted, however many."""
        return int(self._sound.frames)

    def read(self, start: int, count: int | None) -> np.ndarray:
        """Samples [start, start + count) as float32 (samples, channels); fewer where the file ends before."""
        try:
            self._sound.seek(start)
            return self._sound.read(-1 if count is None else count, dtype="float32", always_2d=True)
        except self._error as error:
            raise DecodeError(error.error_string) from error
        except MemoryError as error:  # a damaged header can state any length
            raise DecodeError(f"{count} samples from {start} on do not fit in memory") from error
