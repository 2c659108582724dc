"""MFCC features of one utterance, as the first iteration of HuBERT used them: 13 coefficients and their two slopes.

Kaldi's recipe at a period of 10 ms, then the mean over each frame of 20 or 40 ms, so that no sample goes unheard:

    25 ms window, mean removed, pre-emphasis 0.97, (Hann)^0.85 -> power of an FFT of 512 -> 23 mel bands, 20 Hz to 8 kHz
    -> log -> DCT -> lifter 22 -> 13 coefficients c_t; slopes d_t = sum_j j (c_t+j - c_t-j) / 10, j = 1, 2; and d of d

No number depends on anything but the utterance. FEATURES_VERSION is part of every codec's hash: raise it with any
change that can change a number.
"""

# T periods of 10 ms, W samples of a window, M mel bands, C coefficients

from __future__ import annotations

import functools

import numpy as np

from megatron_most.errors import ConfigError, DataError

FEATURES_VERSION = 1
SAMPLE_RATE = 16000
WIDTH = 39
_HOP, _WINDOW, _FFT = 160, 400, 512
_NUM_MELS, _NUM_COEFFICIENTS, _LIFTER = 23, 13, 22
_LOW_HZ, _HIGH_HZ = 20.0, 8000.0
_EMPHASIS = 0.97
_FLOOR = float(np.finfo(np.float32).eps)
_CHUNK_PERIODS = 256  # fits the cache


def periods_per_frame(frame_s: float) -> int:
    """How many periods of 10 ms make a frame."""
    periods = round(frame_s * SAMPLE_RATE / _HOP)
    if not 1 <= periods <= 10 or abs(periods * _HOP / SAMPLE_RATE - frame_s) > 1e-9:
        raise ConfigError("frame_s", frame_s, "not a whole number of 10 ms up to 0.1 s", "use 0.02 or 0.04")
    return periods


def min_samples(frame_s: float) -> int:
    """Samples of the shortest wave that has a frame."""
    return _WINDOW + (periods_per_frame(frame_s) - 1) * _HOP


def mfcc_features(wave: np.ndarray, frame_s: float, *, centred: bool = False) -> np.ndarray:
    """Features (frames, 39) in float32 of a mono wave at 16 kHz, values in -1..1. centred: coefficients less their mean
    over the wave, in which much of the voice, the microphone and the loudness is.
    """
    wave = np.ascontiguousarray(wave, dtype=np.float32)
    per_frame = periods_per_frame(frame_s)
    if wave.ndim != 1 or len(wave) < min_samples(frame_s):
        raise DataError(f"a wave of shape {wave.shape}; MFCC needs one axis of {min_samples(frame_s)} samples or more")
    num_periods = 1 + (len(wave) - _WINDOW) // _HOP
    parts = [
        _coefficients(wave, t, min(t + _CHUNK_PERIODS, num_periods)) for t in range(0, num_periods, _CHUNK_PERIODS)
    ]
    c_TC = np.concatenate(parts)
    if centred:
        c_TC -= c_TC.mean(axis=0)
    slopes_TC = _slopes(c_TC)
    features = np.concatenate([c_TC, slopes_TC, _slopes(slopes_TC)], axis=1)
    num_frames = len(features) // per_frame
    return features[: num_frames * per_frame].reshape(num_frames, per_frame, WIDTH).mean(axis=1, dtype=np.float32)


def _coefficients(wave: np.ndarray, first: int, last: int) -> np.ndarray:
    """Cepstral coefficients of the periods first..last-1.

    Emphasis after removing the mean m is (x_i - m) - 0.97 (x_i-1 - m) = (x_i - 0.97 x_i-1) - 0.03 m, so it is taken
    once for all windows; the first sample of a window counts itself as its predecessor.
    """
    import scipy.fft

    window_W, mels_FM, dct_MC = _tables()
    part = wave[first * _HOP : (last - 1) * _HOP + _WINDOW]
    sums = part.reshape(-1, _HOP // 2).sum(axis=1)  # a window is five of these
    means_T = sum(sums[i : len(sums) - 4 + i : 2] for i in range(5)) / np.float32(_WINDOW)
    emphasised = np.empty_like(part)
    emphasised[1:] = part[1:] - np.float32(_EMPHASIS) * part[:-1]
    frames_TW = np.zeros((last - first, _FFT), np.float32)
    inside_TW = frames_TW[:, :_WINDOW]
    inside_TW[:, 1:] = np.lib.stride_tricks.sliding_window_view(emphasised, _WINDOW)[::_HOP, 1:]
    inside_TW[:, 0] = np.float32(1 - _EMPHASIS) * part[: len(part) - _WINDOW + 1 : _HOP]
    inside_TW -= np.float32(1 - _EMPHASIS) * means_T[:, None]
    inside_TW *= window_W
    spectrum = scipy.fft.rfft(frames_TW, axis=1)
    power_TF = spectrum.real**2 + spectrum.imag**2
    return np.log(np.maximum(power_TF @ mels_FM, np.float32(_FLOOR))) @ dct_MC


def _slopes(c_TC: np.ndarray) -> np.ndarray:
    """The regression slope over five periods; the ends are repeated."""
    padded = np.concatenate([c_TC[:1], c_TC[:1], c_TC, c_TC[-1:], c_TC[-1:]])
    near, far = padded[3:-1] - padded[1:-3], padded[4:] - padded[:-4]
    return (near + np.float32(2) * far) / np.float32(10)


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The window, the mel bands over FFT bins, and DCT with lifter, in float32."""
    window_W = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1))) ** 0.85
    edges = np.linspace(_mel(_LOW_HZ), _mel(_HIGH_HZ), _NUM_MELS + 2)
    bins_F = _mel(np.arange(_FFT // 2 + 1) * SAMPLE_RATE / _FFT)[:, None]
    rising = (bins_F - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins_F) / (edges[2:] - edges[1:-1])
    mels_FM = np.maximum(0.0, np.minimum(rising, falling))
    k_C, m_M = np.arange(_NUM_COEFFICIENTS), np.arange(_NUM_MELS)
    dct_MC = np.sqrt(2 / _NUM_MELS) * np.cos(np.pi * k_C * (m_M[:, None] + 0.5) / _NUM_MELS)
    dct_MC[:, 0] = np.sqrt(1 / _NUM_MELS)
    dct_MC *= 1 + _LIFTER / 2 * np.sin(np.pi * k_C / _LIFTER)
    return window_W.astype(np.float32), mels_FM.astype(np.float32), dct_MC.astype(np.float32)


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)
