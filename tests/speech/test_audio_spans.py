"""A span of a long file is the file that holds only the span, sample by sample."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_most.speech import AudioError, probe, read_span
from megatron_most.speech.audio import to_samples
from tests.audio_files import voice, write_sound


def random_spans(seconds: float, num: int) -> list[tuple[float, float]]:
    """Starts and durations rounded to 1 ms, as corpora publish them."""
    rng = np.random.default_rng(0)
    durations = np.round(rng.uniform(0.05, 0.4, num), 3)
    return [(float(np.round(rng.uniform(0, seconds - d), 3)), float(d)) for d in durations]


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [("long.wav", 16000, 1), ("long.flac", 16000, 1), ("stereo.wav", 44100, 2), ("stereo.flac", 44100, 2)],
)
def test_200_spans_of_a_long_file_equal_200_files_cut_out_of_it(
    tmp_path: Path, name: str, rate: int, channels: int
) -> None:
    sound = voice(20, rate, channels)
    path = write_sound(tmp_path / name, sound, rate, subtype="PCM_16")
    whole, _ = soundfile.read(path, dtype="int16")
    for start, duration in random_spans(20, 200):
        first = to_samples(start, rate)
        cut = tmp_path / "cut.wav"
        soundfile.write(cut, whole[first : first + to_samples(duration, rate)], rate, subtype="PCM_16")
        span = read_span(path, start, duration, sample_rate=16000)
        alone = read_span(cut, sample_rate=16000)
        assert span.dtype == np.float32 and abs(len(span) - duration * 16000) <= 1
        assert np.array_equal(span, alone)


def test_a_span_has_the_very_samples_of_the_file(tmp_path: Path) -> None:
    sound = voice(2, 16000, 2)
    path = write_sound(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    assert np.array_equal(read_span(path, 0.5, 1.0, sample_rate=16000, channel=1), sound[8000:24000, 1])
    assert np.array_equal(read_span(path, 0.5, 1.0, sample_rate=16000), sound[8000:24000].mean(axis=1))
    assert np.array_equal(read_span(path, 1.5, sample_rate=16000, channel=0), sound[24000:, 0])


def test_resampling_keeps_a_tone_where_and_as_loud_as_it_was(tmp_path: Path) -> None:
    t = np.arange(44100 * 2) / 44100
    path = write_sound(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * t), 44100, subtype="FLOAT")
    found = read_span(path, sample_rate=16000)
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)
    assert len(found) == 32000
    assert np.abs(found - wanted)[500:-500].max() < 1e-4


def test_seconds_become_samples_with_halves_up_and_without_the_noise_of_floats() -> None:
    assert [to_samples(s, 16000) for s in (0.1 + 0.2, 1.1, 2.675, 0.00003125, 0.0)] == [4800, 17600, 42800, 1, 0]


def test_a_duration_rounded_up_by_a_millisecond_is_cut_at_the_end_and_more_is_refused(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.flac", voice(1.0), 16000)
    assert len(read_span(path, 0.5, 0.501, sample_rate=16000)) == 8000
    with pytest.raises(AudioError, match="beyond the end"):
        read_span(path, 0.5, 0.503, sample_rate=16000)


def test_threads_read_what_one_thread_reads(tmp_path: Path) -> None:
    paths = [write_sound(tmp_path / name, voice(20, seed=1), 16000) for name in ("a.wav", "a.flac")]
    paths.append(write_sound(tmp_path / "a.mp3", voice(20, seed=1), 16000))
    paths.append(write_sound(tmp_path / "a.ogg", voice(20, seed=1), 16000))
    jobs = [(path, start, duration) for path in paths for start, duration in random_spans(20, 25)]

    def read(job: tuple[Path, float, float]) -> np.ndarray:
        return read_span(job[0], job[1], job[2], sample_rate=24000)

    alone = [read(job) for job in jobs]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(read, jobs))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_the_end_of_an_eight_hour_file_is_read_without_the_rest(tmp_path: Path) -> None:
    path, seconds = tmp_path / "long.wav", 8 * 3600
    tail = voice(1.0)
    with soundfile.SoundFile(path, "w", samplerate=16000, channels=1, subtype="PCM_16") as file:
        file.write(np.zeros(16, np.float32))
    head = bytearray(path.read_bytes()[:44])
    head[4:8], head[40:44] = ((36 + seconds * 32000).to_bytes(4, "little"), (seconds * 32000).to_bytes(4, "little"))
    with open(path, "wb") as file:  # sparse: 920 MB that take no room
        file.write(head)
        file.seek(44 + (seconds - 1) * 32000)
        file.write(np.round(tail * 32767).astype("<i2").tobytes())
    before = len(os.listdir("/proc/self/fd"))
    assert probe(path).duration == seconds
    found = read_span(path, seconds - 1, 1.0, sample_rate=16000)
    assert np.abs(found - tail).max() < 1e-4
    assert len(os.listdir("/proc/self/fd")) == before  # no file stays open
