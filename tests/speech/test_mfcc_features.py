"""MFCC: against the recipe written out in loops, and free of anything but the utterance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft

from megatron_most.errors import ConfigError, DataError
from megatron_most.speech.features import mfcc_features, min_samples
from tests.audio_files import voice


def mel(hertz: float) -> float:
    return 1127 * math.log(1 + hertz / 700)


def reference(wave: np.ndarray, frame_s: float) -> np.ndarray:
    """The recipe of features.py, one number after another, in float64."""
    low, high = mel(20), mel(8000)
    edges = [low + (high - low) * i / 24 for i in range(25)]
    window = [(0.5 - 0.5 * math.cos(2 * math.pi * i / 399)) ** 0.85 for i in range(400)]
    rows = []
    for start in range(0, len(wave) - 399, 160):
        x = wave[start : start + 400].astype(np.float64)
        x = x - x.mean()
        y = [x[0] - 0.97 * x[0]] + [x[i] - 0.97 * x[i - 1] for i in range(1, 400)]
        power = np.abs(np.fft.fft([a * b for a, b in zip(y, window, strict=True)], 512)) ** 2
        bands = []
        for m in range(23):
            total = 0.0
            for k in range(257):
                at = mel(k * 16000 / 512)
                rise = (at - edges[m]) / (edges[m + 1] - edges[m])
                fall = (edges[m + 2] - at) / (edges[m + 2] - edges[m + 1])
                total += power[k] * max(0.0, min(rise, fall))
            bands.append(math.log(max(total, float(np.finfo(np.float32).eps))))
        cepstrum = scipy.fft.dct(bands, norm="ortho")[:13]
        rows.append([c * (1 + 11 * math.sin(math.pi * i / 22)) for i, c in enumerate(cepstrum)])

    def slopes(values: np.ndarray) -> np.ndarray:
        def at(t: int) -> np.ndarray:
            return values[min(max(t, 0), len(values) - 1)]

        return np.array([sum(j * (at(t + j) - at(t - j)) for j in (1, 2)) / 10 for t in range(len(values))])

    c = np.array(rows)
    every = np.concatenate([c, slopes(c), slopes(slopes(c))], axis=1)
    each = round(frame_s * 100)
    return np.array([every[i : i + each].mean(axis=0) for i in range(0, len(every) - each + 1, each)])


@pytest.mark.parametrize("frame_s", [0.02, 0.04])
def test_features_are_those_of_the_recipe_in_loops(frame_s: float) -> None:
    wave = voice(0.6, seed=3)
    found, wanted = mfcc_features(wave, frame_s), reference(wave, frame_s)
    assert found.dtype == np.float32 and found.shape == wanted.shape == ((58 // round(frame_s * 100)), 39)
    assert np.abs(wanted).max() > 10
    assert np.abs(found - wanted).max() < 2e-3  # fp32; sums up to 100


def test_features_depend_on_the_utterance_alone_and_not_on_where_chunks_end() -> None:
    wave = voice(12.0, seed=4)
    whole = mfcc_features(wave, 0.02)
    assert np.array_equal(whole, mfcc_features(wave.copy(), 0.02))
    # Frames away from the edge of a cut are those of the whole but for rounding; 2.56 s is where a chunk ends.
    part = mfcc_features(wave[16000:], 0.02)
    assert np.abs(part[4:300] - whole[54:350]).max() < 2e-3


def test_silence_and_full_scale_give_finite_features() -> None:
    for wave in (np.zeros(8000, np.float32), np.ones(8000, np.float32), np.tile([1.0, -1.0], 4000)):
        assert np.isfinite(mfcc_features(wave, 0.04)).all()


@pytest.mark.parametrize("frame_s", [0.01, 0.02, 0.04])
def test_the_shortest_wave_has_one_frame_and_a_shorter_one_is_refused(frame_s: float) -> None:
    shortest = min_samples(frame_s)
    assert len(mfcc_features(np.zeros(shortest, np.float32), frame_s)) == 1
    with pytest.raises(DataError, match=str(shortest)):
        mfcc_features(np.zeros(shortest - 1, np.float32), frame_s)


@pytest.mark.parametrize("frame_s", [0.025, 0.0, 0.5])
def test_a_period_that_is_no_whole_number_of_10_ms_is_refused(frame_s: float) -> None:
    with pytest.raises(ConfigError, match="frame_s"):
        mfcc_features(np.zeros(16000, np.float32), frame_s)


def test_centred_features_do_without_loudness_and_a_microphones_tone() -> None:
    wave = voice(2.0, seed=5)
    plain, centred = mfcc_features(wave, 0.04), mfcc_features(wave, 0.04, centred=True)
    np.testing.assert_allclose(plain[:, 13:], centred[:, 13:], atol=1e-4)
    apart = plain[:, :13] - centred[:, :13]
    np.testing.assert_allclose(apart, np.broadcast_to(apart[0], apart.shape), atol=1e-4)
    centre, before = np.abs(centred[:, :13].mean(axis=0)), np.abs(plain[:, :13].mean(axis=0))
    assert centre.max() < 0.5 and before.max() > 5  # the mean is that of all periods, some of the last are in no frame
    softer = np.float32(0.3) * wave
    np.testing.assert_allclose(mfcc_features(softer, 0.04, centred=True), centred, atol=0.05)
    assert np.abs(mfcc_features(softer, 0.04) - plain).max() > 1
