"""Whatever is wrong with a file or a span is an AudioError with a fixed reason; nothing is printed, nothing crashes."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_most.speech import REASONS, AudioError, probe, read_span
from tests.audio_files import voice, write_compressed, write_sound

SOUND = voice(4.0)


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def with_nan(path: Path) -> Path:
    sound = SOUND.copy()
    sound[30000] = np.nan
    sound[30001] = -np.inf
    return write_sound(path, sound, 16000, subtype="FLOAT")


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_text(content, encoding=encoding)
    return path


def noise(path: Path) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(50000))
    return path


def replaced(path: Path, at: int, content: bytes) -> Path:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)
    return path


def lost_sync(path: Path) -> Path:
    return replaced(write_sound(path, SOUND, 16000), 40000, np.random.default_rng(0).bytes(400))


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


DAMAGED: list[tuple[str, str, Callable[[Path], Path]]] = [
    ("missing file", "a.wav", lambda p: p),
    ("missing file", "loop", lambda p: (p.symlink_to(p), p)[1]),
    ("not a file", "folder.wav", folder),
    ("not a file", "pipe.wav", pipe),
    ("empty file", "a.wav", lambda p: text(p, "")),
    ("empty file", "none.wav", lambda p: write_sound(p, SOUND[:0], 16000)),
    ("unreadable audio", "text.wav", lambda p: text(p, "this is no sound\n" * 100)),
    ("unreadable audio", "wide.mp3", lambda p: text(p, "this is no sound\n" * 100, "utf-16")),
    ("unreadable audio", "noise.flac", noise),
    ("unreadable audio", "list.m3u", lambda p: text(p, "#EXTM3U\n/etc/hostname\n")),
    ("unreadable audio", "list.txt", lambda p: text(p, "ffconcat version 1.0\nfile /etc/hostname\n")),
    ("unreadable audio", "codec.wav", lambda p: replaced(write_sound(p, SOUND, 16000), 20, b"\x77\x77")),
    ("unreadable audio", "damaged.flac", lost_sync),
    ("truncated audio", "a.wav", lambda p: cut(write_sound(p, SOUND, 16000), 0.7)),
    ("truncated audio", "head.wav", lambda p: cut(write_sound(p, SOUND, 16000), 0.0003)),
    ("truncated audio", "a.flac", lambda p: cut(write_sound(p, SOUND, 16000), 0.7)),
    ("truncated audio", "end.flac", lambda p: cut(write_sound(p, SOUND, 16000), 0.999)),
    ("truncated audio", "vbr.mp3", lambda p: cut(write_sound(p, SOUND, 16000), 0.7)),
    ("truncated audio", "end.mp3", lambda p: cut(write_sound(p, SOUND, 16000), 0.999)),
    ("truncated audio", "a.ogg", lambda p: cut(write_sound(p, SOUND, 16000), 0.7)),
    ("truncated audio", "a.opus", lambda p: cut(write_sound(p, SOUND, 16000, format="OGG", subtype="OPUS"), 0.7)),
    ("truncated audio", "a.m4a", lambda p: cut(write_compressed(p, SOUND, 16000, "aac", "ipod"), 0.7)),
    ("truncated audio", "a.webm", lambda p: cut(write_compressed(p, voice(4, 48000), 48000, "libopus", "webm"), 0.7)),
    ("not a number", "nan.wav", with_nan),
]


@pytest.mark.parametrize(("reason", "name", "make"), DAMAGED, ids=[f"{r}-{n}" for r, n, _ in DAMAGED])
def test_a_damaged_file_is_named_with_its_reason_and_nothing_is_printed(
    tmp_path: Path, reason: str, name: str, make: Callable[[Path], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / name)
    with pytest.raises(AudioError) as caught:
        read_span(path, sample_rate=16000)
    assert caught.value.reason == reason and reason in REASONS
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    if reason not in ("not a number", "unreadable audio"):  # those two take reading
        with pytest.raises(AudioError) as caught:
            probe(path)
        assert caught.value.reason == reason
    assert capfd.readouterr() == ("", "")


def coded(subtype: str, format: str) -> Callable[[Path], Path]:
    return lambda path: write_sound(path, voice(4.0, 8000), 8000, format=format, subtype=subtype)


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("g721.wav", coded("G721_32", "WAV"), "G721_32 inside WAV can be read from its start only; convert it"),
        ("gsm.aiff", coded("GSM610", "AIFF"), "GSM610 inside AIFF can be read from its start only; convert it"),
        ("dwvw.aiff", coded("DWVW_16", "AIFF"), "DWVW_16 inside AIFF can be read from its start only; convert it"),
        ("1hz.wav", lambda p: write_sound(p, SOUND, 1), "1 samples a second; 4000 to 1000000 can be speech"),
        ("0hz.wav", lambda p: replaced(write_sound(p, SOUND, 8000), 24, bytes(4)), ""),
        ("fast.wav", lambda p: write_sound(p, SOUND, 2**31 - 1), "2147483647 samples a second; 4000 to"),
    ],
)
def test_what_cannot_be_speech_or_be_searched_is_refused_before_it_is_in_a_manifest(
    tmp_path: Path, name: str, make: Callable[[Path], Path], told: str
) -> None:
    path = make(tmp_path / name)
    for read in (probe, lambda path: read_span(path, 0.5, 0.5, sample_rate=16000)):
        with pytest.raises(AudioError) as caught:
            read(path)
        assert caught.value.reason == "unreadable audio" and caught.value.detail.startswith(f"{path}: {told}")


@pytest.mark.parametrize(
    ("reason", "span"),
    [
        ("zero length", (1.0, 0.0)),
        ("zero length", (1.0, -1.0)),
        ("zero length", (1.0, float("nan"))),
        ("zero length", (1.0, 0.00001)),
        ("beyond the end", (3.5, 1.0)),
        ("beyond the end", (4.0, 1.0)),
        ("beyond the end", (4.0, None)),
        ("beyond the end", (1e9, 1.0)),
        ("beyond the end", (-0.5, 1.0)),
        ("beyond the end", (float("nan"), 1.0)),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.webm"])
def test_a_span_that_is_not_there_is_refused(
    tmp_path: Path, name: str, reason: str, span: tuple[float, float | None]
) -> None:
    path = tmp_path / name
    if name == "a.webm":
        write_compressed(path, voice(4.0, 48000), 48000, "libopus", "webm")
    else:
        write_sound(path, SOUND, 16000)
    with pytest.raises(AudioError) as caught:
        read_span(path, span[0], span[1], sample_rate=16000)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
def test_of_a_cut_off_file_what_is_there_is_read_and_what_is_not_is_refused(tmp_path: Path, name: str) -> None:
    path = write_sound(tmp_path / name, SOUND, 16000)
    before = read_span(path, 0.5, 1.0, sample_rate=16000)
    cut(path, 0.7)
    assert np.array_equal(read_span(path, 0.5, 1.0, sample_rate=16000), before)
    with pytest.raises(AudioError, match="truncated audio"):
        read_span(path, 3.0, 0.9, sample_rate=16000)


def test_what_is_not_a_number_matters_only_inside_the_span(tmp_path: Path) -> None:
    path = with_nan(tmp_path / "a.wav")
    assert np.array_equal(read_span(path, 0.0, 1.5, sample_rate=16000), SOUND[:24000])
    with pytest.raises(AudioError, match="2 samples are NaN or infinite"):
        read_span(path, 1.5, 1.0, sample_rate=16000)


def test_a_channel_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", voice(0.5, channels=2), 16000)
    with pytest.raises(AudioError, match="no such channel"):
        read_span(path, sample_rate=16000, channel=2)
    with pytest.raises(AudioError, match="no such channel"):
        read_span(path, sample_rate=16000, channel=-1)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", SOUND, 16000)
    probe(path)  # imports what the child needs
    path.chmod(0)
    for parent in [tmp_path, *tmp_path.parents[:2]]:  # the test's own folders are private to their user
        parent.chmod(0o755)
    child = os.fork()
    if not child:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)  # root may read everything
            probe(path)
        except AudioError as error:
            code = 0 if error.reason == "permission denied" else 2
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_audio_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(AudioError("empty file", "a.wav")))
    assert (error.reason, error.detail, str(error)) == ("empty file", "a.wav", "empty file: a.wav")
