"""The codebook vocoder: what it says is in its units; pieces are the whole; its folder; every bad input by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_most.errors import DataError
from megatron_most.speech import (
    CodebookVocoder,
    CodecIdentity,
    MfccCodec,
    fit_codebook,
    fit_mfcc_codec,
    load_vocoder,
    require_codec,
    save_vocoder,
)
from tests.data_files import sound
from tests.speech_waves import spectrum_distance

WAVES = [sound(6.0, seed) for seed in range(8)]


@pytest.fixture(scope="module")
def codec() -> MfccCodec:
    return fit_mfcc_codec(WAVES, 40, 0.04)


@pytest.fixture(scope="module")
def vocoder(codec: MfccCodec) -> CodebookVocoder:
    speakers = [n % 2 for n in range(len(WAVES))]
    loud = [wave * (1.0 if speaker else 0.1) for wave, speaker in zip(WAVES, speakers, strict=True)]
    return fit_codebook(zip(loud, codec.encode(WAVES), speakers, strict=True), codec.identity, num_speakers=2)


def test_what_is_spoken_sounds_like_what_the_units_were_made_of(codec: MfccCodec, vocoder: CodebookVocoder) -> None:
    wave = sound(5.0, seed=99)
    units = codec.encode([wave])[0]
    made = vocoder.speak(units.units, units.durations, speaker=1)
    assert made.dtype == np.float32 and len(made) == units.num_frames * 640 and np.abs(made).max() <= 1
    order = np.random.default_rng(0).permutation(len(units))
    shuffled = vocoder.speak(units.units[order], units.durations[order], speaker=1)
    near, far = (spectrum_distance(wave[: len(made)], other) for other in (made, shuffled))
    assert near < 0.6 * far


def test_speakers_sound_as_they_were_heard(codec: MfccCodec, vocoder: CodebookVocoder) -> None:
    units = codec.encode([sound(3.0, seed=98)])[0].units
    soft, loud = (float(np.sqrt((vocoder.speak(units, speaker=s) ** 2).mean())) for s in (0, 1))
    assert vocoder.num_speakers == 2 and 3 < loud / soft < 30  # fitted on a tenth and on all of the loudness


def test_pieces_of_a_stream_join_to_the_whole(codec: MfccCodec, vocoder: CodebookVocoder) -> None:
    units = np.concatenate([one.units for one in codec.encode(WAVES)])
    whole = vocoder.speak(units, speaker=1)
    assert len(whole) > 600 * 640  # more than one of speak's own windows
    pieces = list(vocoder.stream(iter(units.tolist()), speaker=1))
    assert len(pieces) > 20
    assert np.abs(np.concatenate(pieces) - whole).max() < 1e-5  # of full scale; sums in another order
    short = units[:2]
    assert np.abs(np.concatenate(list(vocoder.stream(short.tolist()))) - vocoder.speak(short)).max() < 1e-5


def test_predicted_durations_keep_the_pace_of_speech(codec: MfccCodec, vocoder: CodebookVocoder) -> None:
    real = codec.encode(WAVES)
    frames = sum(units.num_frames for units in real)
    spoken = sum(len(vocoder.speak(units.units)) // 640 for units in real)
    assert 0.9 < spoken / frames < 1.1


def test_a_folder_gives_the_same_voice_again(vocoder: CodebookVocoder, tmp_path: Path) -> None:
    folder = save_vocoder(vocoder, tmp_path / "voice")
    assert sorted(path.name for path in folder.iterdir()) == ["vocoder.json", "weights.safetensors"]
    again = load_vocoder(folder, codec=vocoder.codec)
    assert np.array_equal(again.speak([1, 2, 3], speaker=1), vocoder.speak([1, 2, 3], speaker=1))
    assert (again.codec_hash, again.sample_rate, again.num_speakers) == (vocoder.codec.hash, 16000, 2)


def test_units_of_another_codec_are_refused_by_hash(vocoder: CodebookVocoder, tmp_path: Path) -> None:
    other = CodecIdentity("other", "f" * 64, 40, 16000, 0.04)
    folder = save_vocoder(vocoder, tmp_path / "voice")
    for codec in (other, other.hash):
        with pytest.raises(
            DataError, match=f"f{{12}}.*speaks units of {vocoder.codec.name} .{vocoder.codec.hash[:12]}"
        ):
            load_vocoder(folder, codec=codec)
    require_codec(vocoder, vocoder.codec.hash)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (dict(units=[]), "no units: there is nothing to say"),
        (dict(units=[1, 40]), r"unit 40 at place 1: the codec has units 0\.\.39"),
        (dict(units=[-1]), "unit -1 at place 0"),
        (dict(units=[1.0, 2.0]), "float64; give one axis of whole numbers"),
        (dict(units=[[1, 2]]), r"shape \(1, 2\)"),
        (dict(units=[1, 2], durations=[1]), "1 durations for 2 units"),
        (dict(units=[1, 2], durations=[1, 0]), "duration 0 at place 1"),
        (dict(units=[1], durations=[1 << 40]), "at most"),
        (dict(units=[1], speaker=2), r"speaker 2: no such voice; it has voices 0\.\.1"),
        (dict(units=[1], speaker=-1), "no such voice"),
    ],
)
def test_what_cannot_be_spoken_is_refused(vocoder: CodebookVocoder, call: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        vocoder.speak(**call)
    if "durations" not in call and isinstance((call["units"] or [0])[0], int):
        with pytest.raises(DataError, match=says):
            list(vocoder.stream(call["units"], call.get("speaker", 0)))


def damage(folder: Path, how: str) -> None:
    weights, about = folder / "weights.safetensors", folder / "vocoder.json"
    content = json.loads(about.read_text())
    if how == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "flipped":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif how == "gone":
        weights.unlink()
    elif how == "no json":
        about.write_text("{")
    elif how.startswith("["):
        about.write_text(how)
    elif how[0] in "sf":
        name, value = how.split()
        about.write_text(json.dumps({**content, "codec": {**content["codec"], name: json.loads(value)}}))
    else:
        about.write_text(json.dumps({**content, **json.loads(how)}))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("cut off", "weights.safetensors: damaged or cut off"),
        ("flipped", "weights.safetensors: damaged or cut off"),
        ("gone", "weights.safetensors: cannot be read"),
        ("no json", "vocoder.json: not a readable vocoder"),
        ('{"format": 2}', "format 2, this version reads 1"),
        ('{"kind": "wavenet"}', "kind 'wavenet'; this version knows codebook and hifigan"),
        ('{"kind": "hifigan"}', "vocoder.json: not a readable vocoder"),
        ('{"settings": {"a": 1}}', "this version knows none"),
        ('{"codec": {"name": "a"}}', "codec identity"),
        ("[" * 100_000, "not a readable vocoder"),
        ("sample_rate 0", "0 samples a second"),
        ("sample_rate 10000000", "10000000 samples a second"),
        ("frame_s 1e308", "1e.308 s a frame"),
    ],
)
def test_a_damaged_folder_is_refused(vocoder: CodebookVocoder, tmp_path: Path, how: str, says: str) -> None:
    folder = save_vocoder(vocoder, tmp_path / "voice")
    damage(folder, how)
    with pytest.raises(DataError, match=says):
        load_vocoder(folder)


def test_weights_that_are_no_numbers_are_refused_at_saving_and_at_loading(
    vocoder: CodebookVocoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmed = CodebookVocoder(vocoder.codec, {**vocoder.arrays(), "mean": vocoder.arrays()["mean"] * np.nan})
    with pytest.raises(DataError, match="mean holds .* NaN or infinite"):
        save_vocoder(harmed, tmp_path / "a")
    with monkeypatch.context() as patched:  # as another program may have written it
        patched.setattr("megatron_most.speech.vocoder_files._require_finite", lambda arrays, where: None)
        folder = save_vocoder(harmed, tmp_path / "b")
    with pytest.raises(DataError, match="weights.safetensors: mean holds .* NaN or infinite"):
        load_vocoder(folder)
    huge = CodebookVocoder(vocoder.codec, {**vocoder.arrays(), "mean": vocoder.arrays()["mean"] * 0 + 1e30})
    with pytest.raises(DataError, match="mean holds numbers above 1e.06"):
        save_vocoder(huge, tmp_path / "c")


def test_speech_that_does_not_fit_is_refused(codec: MfccCodec) -> None:
    units = codec.encode(WAVES[:1])[0]
    with pytest.raises(DataError, match="speaker 1 beyond"):
        fit_codebook([(WAVES[0], units, 1)], codec.identity)
    with pytest.raises(DataError, match="no speech to fit on"):
        fit_codebook([], codec.identity)
    with pytest.raises(DataError, match="not whole columns"):
        fit_codebook([(WAVES[0], units, 0)], CodecIdentity("odd", "0" * 64, 40, 16000, 0.0403))
