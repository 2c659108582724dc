"""Whether a wave says its text: faults that need no recogniser, and the word error rate of what a judge heard."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from megatron_most.data.overlap import normalised_words
from megatron_most.data.rejects import RowError
from megatron_most.score import find_normaliser

_SILENT = 1e-3  # root mean square, where full scale is 1
_SLOWEST, _FASTEST = 0.5, 8.0  # words a second; a voice has 2 to 4
_SLACK_S = 1.0  # of silence around a short text
_FLAT = 0.5  # spectral flatness of a long-term spectrum: 1 is white noise, speech is below 0.1
_STEADY_DB = 2.5  # how much the level of 32 ms moves: of hums, tones, coloured noise below 2, of recorded words 5 to 20
_HEARD_DB = 50.0  # pauses below that say nothing
_BAND_HZ = (100, 4000)
_FRAME = 512


def check_wave(wave: np.ndarray, text: str, sample_rate: int) -> None:
    """RowError "silence", "noise", "not sound" or "wrong length"."""
    if not len(wave) or not np.isfinite(wave).all():
        raise RowError("not sound", f"{len(wave)} samples" if not len(wave) else "NaN or infinite samples")
    level = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    if level < _SILENT:
        raise RowError("silence", f"level {level:.2g}")
    seconds, words = len(wave) / sample_rate, max(len(text.split()), 1)
    if not words / _FASTEST <= seconds <= most_seconds(text):
        raise RowError("wrong length", f"{seconds:.2f} s for {words} words")
    if (flat := flatness(wave)) > _FLAT:
        raise RowError("noise", f"spectral flatness {flat:.2f}")
    if (moves := movement(wave, sample_rate)) < _STEADY_DB:
        raise RowError("noise", f"its level moves by {moves:.1f} dB, as no speech does")


def most_seconds(text: str) -> float:
    """How long the slowest voice takes for a text."""
    return max(len(text.split()), 1) / _SLOWEST + _SLACK_S


def flatness(wave: np.ndarray) -> float:
    """exp(mean log P) / mean P of the mean power spectrum P: how much it is like white noise."""
    if not len(power := _power(wave, _FRAME)):
        return 0.0
    mean = power.mean(axis=0)[1:] + 1e-12
    return float(np.exp(np.log(mean).mean()) / mean.mean())


def movement(wave: np.ndarray, sample_rate: int) -> float:
    """Standard deviation, in dB, of the level of 32 ms within the band of a voice: syllables come and go."""
    frame = round(0.032 * sample_rate)
    low, high = (math.ceil(hz * frame / sample_rate) for hz in _BAND_HZ)
    if not len(power := _power(wave, frame)):
        return 0.0
    level = 10 * np.log10(power[:, low : high + 1].sum(axis=1) + 1e-12)
    return float(level[level > np.percentile(level, 99) - _HEARD_DB].std())


def _power(wave: np.ndarray, frame: int) -> np.ndarray:
    """Power spectra of windows that lie side by side."""
    frames = wave[: len(wave) // frame * frame].reshape(-1, frame)
    return np.square(np.abs(np.fft.rfft(frames * np.hanning(frame), axis=1)))


def word_error_rate(said: str, heard: str) -> float:
    """Edits to turn one into the other, for each word of `said`. How it is written does not count: voices are given
    numbers as words, and some judges write figures, others leave out apostrophes. So it is the less of two rates, after
    Whisper's normaliser and with case and punctuation left out alone.
    """
    whisper = find_normaliser("en")
    ways = [(normalised_words(said), normalised_words(heard)), (whisper(said).split(), whisper(heard).split())]
    return min(edits(wanted, found) / max(len(wanted), 1) for wanted, found in ways)


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """Levenshtein's distance of two rows of words."""
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, against in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != against))
    return row[-1]
