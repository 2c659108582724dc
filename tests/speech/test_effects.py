"""Effects on sound, by their physics: powers, pitches, lengths, bands and echoes are those that were asked for."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_most.config import AugmentConfig, load_recipe
from megatron_most.errors import ConfigError, DataError
from megatron_most.speech import Augmenter, open_augmentation
from megatron_most.speech import effects as fx
from megatron_most.speech.sound_sets import list_sounds
from tests.data_files import RATE, sound

ROOT = Path(__file__).resolve().parents[2]
SECONDS = np.arange(2 * RATE) / RATE
TONE = (0.3 * np.sin(2 * np.pi * 440 * SECONDS)).astype(np.float32)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def power(wave: np.ndarray) -> float:
    return float(np.square(wave, dtype=np.float64).mean())


def decibels(one: float, other: float) -> float:
    return 10 * np.log10(one / other)


def pitch(wave: np.ndarray) -> float:
    """The strongest frequency of the middle, in Hz."""
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    return float(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * RATE / len(middle))


def band_power(wave: np.ndarray, low: float, high: float) -> float:
    spectrum = np.abs(np.fft.rfft(wave)) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
    return float(spectrum[(hertz >= low) & (hertz < high)].mean())


def augmenter(**settings: object) -> Augmenter:
    return Augmenter(open_augmentation(AugmentConfig(**settings))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_speed_divides_the_length_and_multiplies_the_pitch(factor: float) -> None:
    fast = fx.at_speed(TONE, factor)
    assert len(fast) == round(len(TONE) / factor)
    assert pitch(fast) == pytest.approx(440 * factor, abs=2)


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_tempo_divides_the_length_and_keeps_the_pitch(factor: float) -> None:
    fast = fx.at_tempo(TONE, factor, RATE)
    assert len(fast) == round(len(TONE) / factor)
    assert pitch(fast) == pytest.approx(440, abs=2)
    assert power(fast) == pytest.approx(power(TONE), rel=0.05)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5, 40.0])
def test_noise_is_as_far_below_the_speech_as_asked(snr: float) -> None:
    speech = sound(3, 1)
    noisy = fx.with_noise(speech, fx.coloured_noise(len(speech), 1.0, RATE, draw()), snr)
    assert decibels(power(speech), power(noisy - speech)) == pytest.approx(snr, abs=0.1)


@pytest.mark.parametrize(("slope", "per_octave"), [(0.0, 0.0), (1.0, 3.01), (2.0, 6.02)])
def test_noise_falls_with_frequency_as_its_colour_says(slope: float, per_octave: float) -> None:
    noise = fx.coloured_noise(20 * RATE, slope, RATE, draw())
    fall = decibels(band_power(noise, 500, 520), band_power(noise, 4000, 4160)) / 3
    assert fall == pytest.approx(per_octave, abs=0.4)  # of some hundred bins, which are random


def test_an_echo_falls_by_60_db_in_its_time_and_has_the_energy_asked() -> None:
    response = fx.room_response(0.4, 6.0, RATE, draw())
    tail = np.square(response[1:], dtype=np.float64)
    assert decibels(float(response[0] ** 2), tail.sum()) == pytest.approx(6.0, abs=0.01)
    left = 10 * np.log10(np.cumsum(tail[::-1])[::-1] / tail.sum())  # Schroeder's decay
    five, twenty_five = (int(np.argmax(left < level)) for level in (-5, -25))
    assert 3 * (twenty_five - five) / RATE == pytest.approx(0.4, rel=0.1)


def test_a_room_delays_nothing_and_rings_on_after_the_sound() -> None:
    click = np.zeros(RATE, np.float32)
    click[4000] = 0.5
    wet = fx.in_room(click, fx.room_response(0.3, 3.0, RATE, draw()))
    assert len(wet) == len(click) and int(np.abs(wet).argmax()) == 4000
    assert np.abs(wet[:4000]).max() < 1e-6 < np.abs(wet[5000:6000]).max()
    late = np.concatenate([np.zeros(800, np.float32), fx.room_response(0.3, 3.0, RATE, draw())])
    np.testing.assert_allclose(fx.in_room(click, 3 * late), wet, atol=1e-6)  # recorded late and louder


@pytest.mark.parametrize("highest", [3000.0, 5000.0])
def test_a_band_keeps_what_is_inside_and_nothing_outside(highest: float) -> None:
    white = draw().normal(scale=0.1, size=4 * RATE).astype(np.float32)
    narrow = fx.in_band(white, highest, RATE)
    assert len(narrow) == len(white)
    above, inside = ((1.05 * highest, 8000.0), (100.0, 0.85 * highest))
    assert decibels(band_power(narrow, *above), band_power(white, *above)) < -60
    assert decibels(band_power(narrow, *inside), band_power(white, *inside)) == pytest.approx(0, abs=0.1)
    assert fx.in_band(white, 8000.0, RATE) is white


def test_mulaw_has_255_levels_and_an_error_that_grows_with_loudness() -> None:
    ramp = np.linspace(-1, 1, 100001).astype(np.float32)
    coded = fx.through_mulaw(ramp)
    assert len(np.unique(coded)) == 255
    error = np.abs(coded - ramp)
    assert error[np.abs(ramp) < 0.01].max() < 3e-4 and 0.005 < error[np.abs(ramp) > 0.9].max() < 0.03
    np.testing.assert_array_equal(fx.through_mulaw(coded), coded)


@pytest.mark.parametrize("kind", ["mp3", "opus"])
def test_a_codec_is_lossy_delays_nothing_and_keeps_the_length(kind: str) -> None:
    speech = sound(3.21, 5)
    coded = fx.through_codec(speech, kind, 0.7, RATE)  # type: ignore[arg-type]
    assert len(coded) == len(speech)
    assert 0 < decibels(power(speech), power(coded - speech)) < 40
    lags = [float(np.dot(np.roll(coded, lag), speech)) for lag in range(-40, 41)]
    assert abs(int(np.argmax(lags)) - 40) <= 2


def test_opus_of_a_rate_it_does_not_know_is_refused() -> None:
    with pytest.raises(DataError, match="22050 samples a second; set data.augment.opus = 0"):
        fx.through_codec(TONE, "opus", 0.5, 22050)


def test_loud_results_are_scaled_down_and_never_clipped_or_wrapped() -> None:
    loud = augmenter(volume=1.0, volume_db=(30.0, 30.0))(TONE, ("a",), RATE)
    assert np.abs(loud).max() == pytest.approx(fx.FULL)
    np.testing.assert_allclose(loud / np.abs(loud).max(), TONE / np.abs(TONE).max(), atol=1e-6)  # its shape is whole
    soft = augmenter(volume=1.0, volume_db=(-6.0, -6.0))(TONE, ("a",), RATE)
    assert decibels(power(soft), power(TONE)) == pytest.approx(-6, abs=0.01)


def every_effect() -> dict[str, object]:
    names = ("speed", "tempo", "room", "noise", "band", "mulaw", "mp3", "opus", "volume")
    return dict.fromkeys(names, 1.0)


def test_silence_stays_silent_and_short_waves_pass_through_every_effect() -> None:
    whole = augmenter(**every_effect())
    assert np.abs(whole(np.zeros(RATE, np.float32), ("a",), RATE)).max() < 2e-3  # a codec's own noise
    for count in (1, 7, 160, 401):
        found = whole(sound(1, 3)[:count], ("b", count), RATE)
        assert len(found) == max(1, round(count / whole.pace(("b", count)))) and np.isfinite(found).all()
    with pytest.raises(DataError, match="no samples"):
        whole(sound(1, 3)[:0], ("c",), RATE)


def test_a_sample_depends_on_seed_and_key_alone_and_every_effect_changes_it() -> None:
    waves = [sound(1.5, seed) for seed in range(6)]
    one, other = augmenter(**every_effect()), augmenter(**every_effect())
    forwards = [one(wave, ("u", n), RATE) for n, wave in enumerate(waves)]
    backwards = [other(wave, ("u", n), RATE) for n, wave in reversed(list(enumerate(waves)))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    again = augmenter(seed=1, **every_effect())(waves[0], ("u", 0), RATE)
    assert again.shape != forwards[0].shape or not np.allclose(again, forwards[0])
    for name in every_effect():
        changed = augmenter(**{name: 1.0})(waves[0], ("u", 0), RATE)
        assert changed.shape != waves[0].shape or not np.allclose(changed, waves[0], atol=1e-4), name


def test_switching_an_effect_on_leaves_the_draws_of_the_others_alone() -> None:
    keys = [("u", n) for n in range(200)]
    alone, beside = augmenter(speed=0.5), augmenter(speed=0.5, noise=0.5, room=0.5)
    paces = [alone.pace(key) for key in keys]
    assert paces == [beside.pace(key) for key in keys]
    by_tempo = augmenter(tempo=0.5)
    both = sum(by_tempo.pace(key) != 1 != pace for key, pace in zip(keys, paces, strict=True))
    assert 30 < both < 70  # a quarter: what one effect draws says nothing of another's
    assert 70 < sum(pace != 1 for pace in paces) < 130 and 0.9 <= min(paces) < 0.95 < 1.05 < max(paces) <= 1.1


def test_the_default_set_needs_no_files_and_leaves_some_samples_as_they_are() -> None:
    config = load_recipe("parts/augment").data.augment
    assert config.is_on and config.changes_length and 0 < config.opus <= 0.2 and 0 < config.mp3 <= 0.2
    whole, speech = Augmenter(open_augmentation(config)[0]), sound(1, 2)
    found = [whole(speech, (str(n), 1), RATE) for n in range(60)]
    same = sum(len(wave) == len(speech) and np.array_equal(wave, speech) for wave in found)
    assert 0 < same < 30
    different = sum(not np.array_equal(a, b) for a, b in itertools.pairwise(found))
    assert different > 45


# Files of noise, rooms and voices


def test_noise_comes_from_any_place_of_the_files_at_their_own_rates(tmp_path) -> None:  # type: ignore[no-untyped-def]
    low = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(44100 * 3) / 44100)).astype(np.float32)
    soundfile.write(tmp_path / "low.wav", low, 44100)
    short = (0.5 * np.sin(2 * np.pi * 3000 * np.arange(800) / 8000)).astype(np.float32)
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "short.wav", short, 8000)
    files, bad = list_sounds([tmp_path], "data.augment.noise_folders", decode=True)
    assert len(files) == 2 and not bad
    found = [files.stretch(tmp_path.parent, 2 * RATE, RATE, draw(seed)) for seed in range(12)]
    assert {len(wave) for wave in found} == {2 * RATE}
    assert {round(pitch(wave), -2) for wave in found} == {1000, 3000}
    noisy = augmenter(noise=1.0, noise_db=(10.0, 10.0), noise_folders=(str(tmp_path),))(TONE, ("a",), RATE)
    assert decibels(power(TONE), power(noisy - TONE)) == pytest.approx(10, abs=0.1)


def test_voices_and_rooms_come_from_their_folders(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name, wave in (("v", sound(4, 9)), ("r", np.eye(1, 3000, 50, np.float32)[0])):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", wave, RATE)
    background = augmenter(voices=1.0, voices_db=(20.0, 20.0), voices_folders=(str(tmp_path / "v"),))
    assert decibels(power(TONE), power(background(TONE, ("a",), RATE) - TONE)) == pytest.approx(20, abs=0.1)
    anechoic = augmenter(room=1.0, room_folders=(str(tmp_path / "r"),))
    np.testing.assert_allclose(anechoic(TONE, ("a",), RATE), TONE, atol=1e-6)  # its one click is the direct sound


def test_a_damaged_file_is_left_out_by_name_and_a_folder_of_such_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    field = "data.augment.noise_folders"
    with pytest.raises(DataError, match="holds no sound file; mend it, or leave it out of data.augment.noise_folders"):
        list_sounds([tmp_path], field)
    (tmp_path / "bad.wav").write_bytes(b"RIFF????WAVE" + bytes(50))
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match="none of its 3 sound files can be used: "):
        list_sounds([tmp_path], field, decode=True)
    soundfile.write(tmp_path / "good.wav", 0.1 * draw().normal(size=RATE).clip(-1, 1), RATE)
    files, bad = list_sounds([tmp_path], field, decode=True)
    assert len(files) == 1 and sorted(path.rsplit("/", 1)[1] for path, _ in bad) == [
        "bad.wav",
        "nan.wav",
        "silence.wav",
    ]
    with pytest.raises(DataError, match="no such folder"):
        list_sounds([tmp_path / "none"], field)
    soundfile.write(tmp_path / "good.wav", 0.2 * draw(1).normal(size=RATE).clip(-1, 1), RATE)
    with pytest.raises(DataError, match=r"good\.wav: changed since it was listed"):
        files.require_there(tmp_path.parent)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"noise": 1.5}, "noise"), ({"room": -0.1}, "room"), ({"speed_range": (1.1, 0.9)}, "speed_range"),
        ({"tempo_range": (0.1, 1.0)}, "tempo_range"), ({"noise_db": (float("nan"), 3.0)}, "noise_db"),
        ({"voices": 0.1}, "voices_folders"), ({"voices_most": 0}, "voices_most"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused_by_name(settings: dict[str, object], field: str) -> None:
    from megatron_most.config import check_augment

    with pytest.raises(ConfigError) as caught:
        check_augment(AugmentConfig(**settings))  # type: ignore[arg-type]
    assert caught.value.field == f"data.augment.{field}"


_ALL_AT_ONCE = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from megatron_most.config import AugmentConfig
from megatron_most.speech import Augmenter, FrameSettings, open_augmentation, open_frames

frames = open_frames(FrameSettings(kind="mfcc"))
every = {name: 1.0 for name in ("speed", "tempo", "room", "noise", "band", "mulaw", "mp3", "opus", "volume")}
change = Augmenter(open_augmentation(AugmentConfig(**every))[0])
before, main = set(sys.modules), threading.main_thread()
wave = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 9
with ThreadPoolExecutor(8) as pool:
    made = list(pool.map(lambda at: frames([change(wave, (at,), 16000)])[0], range(8)))
assert len(made) == 8 and len({len(one) for one in made}) > 1
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] in ("scipy", "av", "soxr", "soundfile")))
"""


def test_threads_import_nothing_heavy_at_the_same_time() -> None:
    """Of eight that imported parts of scipy at once, one found half of it, in every second start."""
    command = [sys.executable, "-c", _ALL_AT_ONCE]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr[-2000:]
