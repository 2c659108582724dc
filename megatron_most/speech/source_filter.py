"""Speech as columns of numbers and back: log-mel envelope, voicing and pitch, by analysis and by source and filter.

A column is `hop` samples (10 ms). Analysis looks at 25 ms from where the column begins, for pitch at 40 ms. Synthesis
filters pulses at the pitch (below a frequency that rises with voicing) and noise (above it) by the envelope, and adds
windows up. Unlike Griffin-Lim it needs no iterations and every sample depends on few columns, so a wave made in pieces
is the wave made at once; and a smooth envelope, which is what means of mels are, is what it wants.
"""

# T columns, M mel bands, F bins, N samples, V = M + 3 values of a column: mels, voicing, pitch, is voiced

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

NUM_MELS = 64
NUM_VALUES = NUM_MELS + 3
MARGIN = 16
"""Columns to each side of a piece that its samples depend on, no more."""
_FFT = 1024
_WINDOW_S, _PITCH_WINDOW_S = 0.025, 0.04
_LOW_HZ, _HIGH_SHARE = 40.0, 0.49  # of the mel bands; the highest as a share of the rate
_LOW_PITCH, _HIGH_PITCH, _MEAN_PITCH = 60.0, 400.0, 120.0
_FLOOR = 1e-7
_VOICED = 0.5
_SMOOTH = 9  # columns to each side over which pitch is evened out
_NOISE_S = 4.0  # the noise repeats after this


@dataclass(frozen=True)
class SourceFilter:
    """Analysis and synthesis at one rate. Of pitch a column has the logarithm where it is voiced, else 0."""

    sample_rate: int
    hop: int

    def analyse(self, wave: np.ndarray, num_columns: int) -> np.ndarray:
        """Columns (T, V) of a wave; past its end there is silence."""
        mels_TM = self._mels(wave, num_columns)
        pitch_T, voicing_T = self._pitch(wave, num_columns)
        is_voiced_T = voicing_T > _VOICED
        rest = [voicing_T, np.where(is_voiced_T, np.log(pitch_T), 0.0), is_voiced_T]
        return np.concatenate([mels_TM, np.stack(rest, axis=1)], axis=1)

    def synthesise(
        self, columns_TV: np.ndarray, first: int, last: int, place: int, phase: float
    ) -> tuple[np.ndarray, float]:
        """Samples of columns first..last-1, and the phase of the pulses after them.

        `columns_TV` has MARGIN more columns on each side, where there are any. `place` is the number of column `first`
        in the whole utterance and `phase` that of the pulses there, in turns: 0 at the start.
        """
        hop, window = self.hop, self._window
        pitch_T = self._even(columns_TV)
        turns_T = np.concatenate([[0.0], np.cumsum((pitch_T + np.append(pitch_T[1:], pitch_T[-1])) * hop / 2)])
        turns_T = phase + (turns_T - turns_T[first]) / self.sample_rate
        ahead = -(-len(window) // hop) - 1  # windows that began before and reach into a column
        begin, end = max(0, first - ahead), last
        num = (end - begin) * hop + len(window)
        pulses_N = self._pulses(turns_T, pitch_T, begin, num)
        noise_N = self._noise[(np.arange(num) + (place - first + begin) * hop) % len(self._noise)]
        columns = columns_TV[begin:end]
        voicing_T, is_voiced_T = np.clip(columns[:, NUM_MELS], 0, 1), np.clip(columns[:, NUM_MELS + 2], 0, 1)
        border_T = 1000 + 4000 * voicing_T
        share_TF = np.clip((is_voiced_T - 0.3) / 0.4, 0, 1)[:, None] / (
            1 + np.exp(np.clip((self._hertz[None] - border_T[:, None]) / 400, -50, 50))
        )
        filters_TF = self._envelope(columns[:, :NUM_MELS]) / np.sqrt((window**2).sum())
        starts = np.arange(end - begin)[:, None] * hop + np.arange(len(window))
        spectra_TF = np.fft.rfft(pulses_N[starts] * window, _FFT) * np.sqrt(share_TF)
        spectra_TF += np.fft.rfft(noise_N[starts] * window, _FFT) * np.sqrt(1 - share_TF)
        made_TW = np.fft.irfft(spectra_TF * filters_TF)[:, : len(window)] * window
        wave_N = np.zeros(num)
        np.add.at(wave_N, starts, made_TW)
        cut = slice((first - begin) * hop, (last - begin) * hop)
        return np.tanh(wave_N[cut] / self._overlap).astype(np.float32), float(turns_T[last] % 1.0)  # peaks stay below 1

    def _mels(self, wave: np.ndarray, num_columns: int) -> np.ndarray:
        import scipy.fft

        frames_TN = self._frames(wave, num_columns, len(self._window)) * self._window.astype(np.float32)
        power_TF = np.abs(scipy.fft.rfft(frames_TN, _FFT, axis=1)) ** 2
        return np.log(np.maximum(power_TF @ self._bands, _FLOOR))

    def _pitch(self, wave: np.ndarray, num_columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Pitch in hertz by autocorrelation, and how well the wave repeats at it, 0..1."""
        size = round(_PITCH_WINDOW_S * self.sample_rate)
        low, high = int(self.sample_rate / _HIGH_PITCH), min(int(self.sample_rate / _LOW_PITCH), size // 2)
        frames_TN = self._frames(wave, num_columns, size)
        taper_N = np.hanning(size).astype(np.float32)
        repeats_TN = _repeats((frames_TN - frames_TN.mean(axis=1, keepdims=True)) * taper_N, high)
        of_taper_N = _repeats(taper_N[None], high)[0]
        energy_T = repeats_TN[:, :1]
        lags = np.arange(low, high)
        scores = repeats_TN[:, lags] / (energy_T + 1e-6) * of_taper_N[0] / of_taper_N[lags]
        best_T = (scores - 0.0005 * lags).argmax(axis=1)  # of equals the shorter, or pitch falls by octaves
        voicing_T = np.clip(scores[np.arange(num_columns), best_T], 0, 1) * (energy_T[:, 0] > 1e-3)
        return self.sample_rate / lags[best_T], voicing_T

    def _frames(self, wave: np.ndarray, num_columns: int, size: int) -> np.ndarray:
        wave = np.asarray(wave, dtype=np.float32)[: (num_columns - 1) * self.hop + size]
        wave = np.pad(wave, (0, (num_columns - 1) * self.hop + size - len(wave)))
        return np.lib.stride_tricks.sliding_window_view(wave, size)[:: self.hop]

    def _even(self, columns_TV: np.ndarray) -> np.ndarray:
        """Pitch of each column: the mean of voiced neighbours."""
        kernel = np.hanning(2 * _SMOOTH + 3)[1:-1]
        is_voiced_T = np.clip(columns_TV[:, NUM_MELS + 2], 0, 1)
        logs_T = np.clip(columns_TV[:, NUM_MELS + 1], 0, np.log(_HIGH_PITCH))
        # A trace of the middle pitch, so that where nothing is voiced there is one.
        weight_T = np.convolve(is_voiced_T + 1e-3, kernel, mode="full")[_SMOOTH:-_SMOOTH]
        sum_T = np.convolve(logs_T + 1e-3 * np.log(_MEAN_PITCH), kernel, mode="full")[_SMOOTH:-_SMOOTH]
        return np.exp(np.clip(sum_T / weight_T, np.log(_LOW_PITCH), np.log(_HIGH_PITCH)))

    def _pulses(self, turns_T: np.ndarray, pitch_T: np.ndarray, begin: int, num: int) -> np.ndarray:
        """A pulse wherever a turn is completed, of the power of white noise; from column `begin` on."""
        known = len(turns_T) - 1
        at_N = begin + (np.arange(-1, num)) / self.hop
        turns_N = np.interp(at_N, np.arange(known + 1), turns_T)
        beyond = at_N > known  # the last window's tail, which is cut off
        turns_N[beyond] = turns_T[-1]
        pitch_N = np.interp(at_N[1:], np.arange(known), pitch_T)
        return np.diff(np.floor(turns_N)) * np.sqrt(self.sample_rate / pitch_N)

    def _envelope(self, mels_TM: np.ndarray) -> np.ndarray:
        """Magnitudes (T, F) between the bands' middles, straight lines in the logarithm."""
        return np.exp((mels_TM @ self._between) / 2)

    @cached_property
    def _window(self) -> np.ndarray:
        size = round(_WINDOW_S * self.sample_rate)
        return np.hanning(size + 1)[:-1]

    @cached_property
    def _overlap(self) -> float:
        """The sum of squared windows, the same everywhere but at the very start, where speech is silent."""
        return float((self._window**2).sum() / self.hop)

    @cached_property
    def _hertz(self) -> np.ndarray:
        return np.arange(_FFT // 2 + 1) * self.sample_rate / _FFT

    @cached_property
    def _bands(self) -> np.ndarray:
        """Triangles (F, M), each of sum 1."""
        edges = np.linspace(_mel(_LOW_HZ), _mel(_HIGH_SHARE * self.sample_rate), NUM_MELS + 2)
        bins_F = _mel(self._hertz)[:, None]
        rising = (bins_F - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - bins_F) / (edges[2:] - edges[1:-1])
        bands = np.maximum(0.0, np.minimum(rising, falling))
        narrow = bands.sum(axis=0) < 1e-3  # a low band between two bins takes the nearest
        middles = np.abs(bins_F - edges[1:-1]).argmin(axis=0)
        bands[middles[narrow], np.flatnonzero(narrow)] = 1.0
        return bands / bands.sum(axis=0)

    @cached_property
    def _between(self) -> np.ndarray:
        """(M, F): how much of each band's value a bin takes."""
        middles_M = (self._bands * self._hertz[:, None]).sum(axis=0)
        return np.stack([np.interp(self._hertz, middles_M, row) for row in np.eye(NUM_MELS)])

    @cached_property
    def _noise(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(round(_NOISE_S * self.sample_rate))


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)


def _repeats(frames_TN: np.ndarray, lags: int) -> np.ndarray:
    """Autocorrelation of each row at the lags below so many."""
    import scipy.fft

    length = scipy.fft.next_fast_len(frames_TN.shape[1] + lags, real=True)  # so that no end meets a beginning
    power_TF = np.abs(scipy.fft.rfft(frames_TN, length, axis=1)) ** 2
    return np.asarray(scipy.fft.irfft(power_TF, length, axis=1)[:, :lags])
