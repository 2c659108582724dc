"""Every format is told by its content and read right; seeks in lossy ones give what a full decode gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_most.speech import AudioError, ffmpeg, probe, read_span
from tests.audio_files import voice, write_compressed, write_sound

PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
SECONDS = 9.0

Maker = Callable[[Path, np.ndarray, int], Path]


def sounds(**how: str) -> Maker:
    return lambda path, sound, rate: write_sound(path, sound, rate, **how)


def compressed(codec: str, container: str, **codec_options: str) -> Maker:
    return lambda path, sound, rate: write_compressed(path, sound, rate, codec, container, codec_options)


# name, format, rate, how to write it, the least correlation with what was written
FORMATS: list[tuple[str, str, int, Maker, float]] = [
    ("a.wav", "wav", 16000, sounds(), 0.9999),
    ("24.wav", "wav", 48000, sounds(subtype="PCM_24"), 0.9999),
    ("mu.wav", "wav", 8000, sounds(subtype="ULAW"), 0.999),
    ("gsm.wav", "wav", 8000, sounds(subtype="GSM610"), 0.85),
    ("a.rf64", "wav", 16000, sounds(), 0.9999),
    ("a.flac", "flac", 22050, sounds(), 0.9999),
    ("a.aiff", "aiff", 16000, sounds(), 0.9999),
    ("a.ogg", "ogg", 44100, sounds(subtype="VORBIS"), 0.98),
    ("a.opus", "ogg", 16000, sounds(format="OGG", subtype="OPUS"), 0.95),
    ("b.opus", "ogg", 48000, compressed("libopus", "ogg"), 0.95),
    ("vbr.mp3", "mp3", 44100, sounds(), 0.98),
    ("cbr.mp3", "mp3", 16000, compressed("libmp3lame", "mp3"), 0.98),
    ("a.m4a", "m4a", 44100, compressed("aac", "ipod"), 0.95),
    ("a.webm", "webm", 48000, compressed("libopus", "webm"), 0.95),
    ("a.g722", "g722", 16000, compressed("g722", "g722"), 0.98),
]
G722_DELAY = 22  # samples, of its filters; it is part of the format


@pytest.fixture(scope="module", params=FORMATS, ids=[row[0] for row in FORMATS])
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray, str, int, float]:
    name, found, rate, make, least = request.param
    sound = voice(SECONDS, rate)
    return make(tmp_path_factory.mktemp("formats") / name, sound, rate), sound, found, rate, least


def test_a_format_is_read_as_it_was_written(written: tuple[Path, np.ndarray, str, int, float]) -> None:
    path, sound, found, rate, least = written
    info = probe(path)
    assert (info.format, info.sample_rate, info.channels) == (found, rate, 1)
    assert abs(info.duration - SECONDS) < 0.002  # no format here keeps its coder's delay
    whole = read_span(path, sample_rate=rate)
    assert len(whole) == info.num_samples
    late = G722_DELAY if found == "g722" else 0
    num = min(len(whole), len(sound)) - late
    assert np.corrcoef(whole[late : late + num], sound[:num])[0, 1] > least


def test_a_span_is_the_slice_of_the_full_decode(written: tuple[Path, np.ndarray, str, int, float]) -> None:
    path, _, _, rate, _ = written
    whole = read_span(path, sample_rate=rate)
    rng = np.random.default_rng(0)
    for first in rng.integers(0, len(whole) - rate // 2, 15):
        span = read_span(path, first / rate, 0.5, sample_rate=rate)
        assert np.abs(span - whole[first : first + rate // 2]).max() < 1e-6  # Opus: fp32 rounding; the others: 0


def test_aac_after_a_seek_is_exact_but_for_bands_of_random_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder fills such bands with random numbers of its own; their seed depends on where decoding began."""
    monkeypatch.setattr(ffmpeg, "_FROM_START_S", {})
    sound = voice(SECONDS, 44100)
    without = write_compressed(tmp_path / "a.m4a", sound, 44100, "aac", "ipod", {"aac_pns": "0"})
    noisy = write_compressed(tmp_path / "b.m4a", sound, 44100, "aac", "ipod")
    whole = [read_span(path, sample_rate=44100)[5 * 44100 : 7 * 44100] for path in (without, noisy)]
    span = [read_span(path, 5.0, 2.0, sample_rate=44100) for path in (without, noisy)]
    assert np.array_equal(span[0], whole[0])
    assert not np.array_equal(span[1], whole[1]) and np.corrcoef(span[1], whole[1])[0, 1] > 0.95
    assert np.array_equal(span[1], read_span(noisy, 5.0, 2.0, sample_rate=44100))


def test_the_name_does_not_matter_but_the_content_does(tmp_path: Path) -> None:
    sound = voice(1.0)
    sound = np.round(sound * 32767) / 32768  # two libraries round to 16 bits in two ways
    flac = write_sound(tmp_path / "a.wav", sound, 16000, format="FLAC")
    wav = write_sound(tmp_path / "b.mp3", sound, 16000, format="WAV")
    raw = write_sound(tmp_path / "c.raw", sound, 16000, format="WAV")
    g722 = write_sound(tmp_path / "d.g722", sound, 16000, format="WAV")
    m4a = write_compressed(tmp_path / "e.flac", voice(1.0, 44100), 44100, "aac", "ipod")
    assert [probe(path).format for path in (flac, wav, raw, g722, m4a)] == ["flac", "wav", "wav", "wav", "m4a"]
    assert np.array_equal(read_span(flac, sample_rate=16000), read_span(wav, sample_rate=16000))


def test_mp3_without_a_length_in_its_header_is_counted(tmp_path: Path) -> None:
    path = write_compressed(tmp_path / "a.mp3", voice(10.0), 16000, "libmp3lame", "mp3", write_xing="0")
    info = probe(path)
    assert b"Xing" not in path.read_bytes()[:4096] and b"Info" not in path.read_bytes()[:4096]
    assert info.num_samples == len(read_span(path, sample_rate=16000)) >= 160000


def test_flac_without_a_length_in_its_header_is_counted(tmp_path: Path) -> None:
    sound = voice(3.0)
    path = write_sound(tmp_path / "a.flac", sound, 16000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    known = read_span(path, 1.0, 1.0, sample_rate=16000)
    path.write_bytes(content)
    assert probe(path).num_samples == 48000
    assert np.array_equal(read_span(path, 1.0, 1.0, sample_rate=16000), known)
    with pytest.raises(AudioError, match="beyond the end"):
        read_span(path, 2.5, 1.0, sample_rate=16000)


def test_fragmented_and_fast_start_mp4_are_read(tmp_path: Path) -> None:
    sound = voice(5.0, 44100)
    for number, flags in enumerate(("faststart", "frag_keyframe+empty_moov")):
        path = write_compressed(tmp_path / f"{number}.mp4", sound, 44100, "aac", "mp4", movflags=flags)
        assert abs(probe(path).duration - 5.0) < 0.05  # a fragmented file keeps the coder's delay
        assert len(read_span(path, 3.0, 1.0, sample_rate=16000)) == 16000


@pytest.mark.skipif(not PROMPTS.is_dir(), reason="needs Debian's asterisk-core-sounds-en-g722")
def test_real_g722_prompts_are_speech_of_the_right_length() -> None:
    paths = sorted(PROMPTS.glob("*.g722"))[:20]
    assert len(paths) == 20
    for path in paths:
        wave = read_span(path, sample_rate=16000)
        assert len(wave) == 2 * path.stat().st_size == probe(path).num_samples
        assert 0.01 < np.abs(wave).max() <= 1.0 and abs(wave.mean()) < 0.01


def test_the_room_is_imported_without_its_heavy_libraries() -> None:
    heavy = ["torch", "transformers", "av", "soundfile", "soxr", "scipy", "lhotse"]
    code = f"import sys, megatron_most.speech; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_length_that_must_be_counted_is_counted_no_further_than_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of silence are a few kilobytes of raw AAC: who takes a minute must not decode them to say so."""
    frames = adts_frames(write_compressed(tmp_path / "a.aac", np.zeros(16000, np.float32), 8000, "aac", "adts"))
    path = tmp_path / "hours.aac"
    path.write_bytes(frames[5] * 60_000)
    decoded: list[int] = []
    samples = ffmpeg.FfmpegFile._samples

    def counted(self: ffmpeg.FfmpegFile, frame: Any) -> Any:
        decoded.append(1)
        return samples(self, frame)

    monkeypatch.setattr(ffmpeg.FfmpegFile, "_samples", counted)
    assert 60 < probe(path, most_s=60).duration < 62 and len(decoded) < 500
    path.write_bytes(frames[5] * 500)
    assert probe(path, most_s=100).duration == probe(path).duration == pytest.approx(64, abs=1)


def adts_frames(path: Path) -> list[bytes]:
    data, found = path.read_bytes(), []
    while data:
        size = (data[3] & 3) << 11 | data[4] << 3 | data[5] >> 5
        found.append(data[:size])
        data = data[size:]
    return found
