"""Corpora of one's own: JSON lines, Kaldi folders, folders of recordings with transcripts."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.data.corpora import Folder, JsonLines, Kaldi, write_manifest
from megatron_most.data.manifest import ROWS, open_manifest
from megatron_most.data.rows import Utterance, Word
from megatron_most.errors import DataError
from tests.closed_files import as_nobody, open_folder


def sound(path: Path, seconds: float = 3.0, rate: int = 8000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(5).uniform(-0.1, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, wave, rate)
    return path


def utterances(folder: Path) -> list[Utterance]:
    return [row for row in open_manifest(folder).rows() if isinstance(row, Utterance)]


def rejects(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["id"], row["reason"]) for row in map(json.loads, lines)]


def json_lines(tmp_path: Path, rows: list[Any], **options: Any) -> JsonLines:
    path = tmp_path / "list.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    given: dict[str, Any] = {"name": "own", "files": (path,), "audio_root": tmp_path / "audio", "max_reject_rate": 1.0}
    return JsonLines(**{**given, "out": tmp_path / "out", **options})


def test_json_lines_may_spell_their_fields_as_toolkits_do(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "a.wav")
    absolute = str(tmp_path / "audio" / "a.wav")
    words = [["the", 0.1, 0.2], {"word": "rest", "start": 0.4, "end": 0.9}]
    rows = [
        {"audio": "a.wav", "text": " Hello  there. ", "id": 7, "speaker": "x", "language": "en"},
        {"audio_filepath": absolute, "offset": 1.25, "duration": 0.5, "text": "a span"},
        {"path": "./b/../a.wav", "start": 2, "text": "the rest", "words": words},
    ]
    (tmp_path / "audio" / "b").mkdir()
    write_manifest(json_lines(tmp_path, rows))
    first, second, third = utterances(tmp_path / "out")
    assert (first.id, first.text, first.speaker, first.language) == ("own-7", "Hello there.", "own-x", "en")
    assert (first.start, first.duration, first.sampling_rate) == (0.0, 3.0, 8000)
    assert (second.id, second.start, second.duration) == ("own-list-2", 1.25, 0.5)
    assert (third.start, third.duration) == (2.0, 1.0)
    assert third.words == (Word(text="the", start=0.1, duration=0.2), Word(text="rest", start=0.4, duration=0.5))
    assert {row.audio for row in (first, second, third)} == {"a.wav"}


def test_json_lines_with_damage_are_rejected_one_by_one(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "a.wav")
    sound(tmp_path / "secret.wav")
    (tmp_path / "audio" / "text.wav").write_text("no sound at all")
    (tmp_path / "audio" / "empty.wav").touch()
    sound(tmp_path / "audio" / "none.wav", seconds=0)
    os.mkfifo(tmp_path / "audio" / "pipe.wav")
    damage: list[tuple[Any, str]] = [
        (b"{", "malformed JSON"),
        (b'{"audio": "a.wav", "text": "\xe9"}', "invalid UTF-8"),
        ({"text": "no audio"}, "malformed row"),
        ({"audio": 7, "text": "a"}, "malformed row"),
        ({"audio": "a.wav"}, "missing text"),
        ({"audio": "a.wav", "text": 7}, "malformed row"),
        ({"audio": "a.wav", "text": "<unk>"}, "tags only"),
        ({"audio": "a.wav", "text": "a", "duration": 0}, "zero length"),
        ({"audio": "a.wav", "text": "a", "start": 2.5, "duration": 1}, "beyond the end"),
        ({"audio": "a.wav", "text": "a", "start": 3.5}, "zero length"),
        ({"audio": "a.wav", "text": "a", "start": "1"}, "malformed row"),
        ({"audio": "a.wav", "text": "a", "words": [["a", 1]]}, "bad word times"),
        ({"audio": "a.wav", "text": "a", "words": [{"word": "a", "start": 1}]}, "malformed row"),
        ({"audio": "../secret.wav", "text": "a"}, "outside the data root"),
        ({"audio": "none/a.wav", "text": "a"}, "missing file"),
        ({"audio": "text.wav", "text": "a"}, "unreadable audio"),
        ({"audio": "empty.wav", "text": "a"}, "empty file"),
        ({"audio": "none.wav", "text": "a"}, "empty file"),
        ({"audio": "pipe.wav", "text": "a"}, "not a file"),
        ({"audio": "touch it-ran |", "text": "a"}, "missing file"),
        ({"audio": "a.wav", "text": "a", "id": "twice"}, "duplicate id"),
    ]
    good = [{"audio": "a.wav", "text": "a", "id": "twice"}]
    header = write_manifest(json_lines(tmp_path, [*good, *(row for row, _ in damage)]))
    assert [reason for _, reason in rejects(tmp_path / "out")] == [reason for _, reason in damage]
    assert header.rows == 1


def test_both_channels_of_a_file_are_named_and_one_may_be_chosen(tmp_path: Path) -> None:
    from lhotse import CutSet

    sound(tmp_path / "audio" / "a.wav", channels=2)
    rows = [{"audio": "a.wav", "text": "both"}, {"audio": "a.wav", "text": "right", "channel": 1}]
    write_manifest(json_lines(tmp_path, rows))
    assert [row.channel for row in utterances(tmp_path / "out")] == [0, 1]
    right = list(CutSet.from_file(tmp_path / "out" / ROWS))[1].with_recording_path_prefix(tmp_path / "audio")
    wave, _ = soundfile.read(tmp_path / "audio" / "a.wav", dtype="float32")
    assert np.array_equal(right.load_audio()[0], wave[:, 1])


def test_a_manifest_of_relative_paths_moves_with_its_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound(tmp_path / "here" / "audio" / "a.wav")
    monkeypatch.chdir(tmp_path / "here")
    given = [{"audio": "a.wav", "text": "a"}, {"audio": str(tmp_path / "here" / "audio" / "a.wav"), "text": "b"}]
    for name, root in (("moves", Path("audio")), ("stays", tmp_path / "here" / "audio")):
        write_manifest(json_lines(tmp_path, given, audio_root=root, out=Path("data/manifests") / name))
    (tmp_path / "here").rename(tmp_path / "there")
    made = tmp_path / "there" / "data" / "manifests"
    assert open_manifest(made / "moves").header.audio_root == "../../../audio"
    assert open_manifest(made / "moves").audio_root == tmp_path / "there" / "audio"
    assert open_manifest(made / "stays").audio_root == tmp_path / "here" / "audio"
    assert {row.audio for row in utterances(made / "moves")} == {row.recording for row in utterances(made / "moves")}
    with gzip.open(made / "moves" / ROWS, "rt") as rows:
        assert str(tmp_path) not in rows.read() + (made / "moves" / "manifest.json").read_text()


def test_audio_that_is_not_there_says_which_option_may_be_wrong(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "a.wav")
    rows = [{"audio": "lists/none.wav", "text": "a"}, {"audio": "a.wav", "text": "a"}]
    write_manifest(json_lines(tmp_path, rows, strip_prefix="lists/"))
    [line] = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["detail"] == "lists/none.wav; no none.wav in the audio root, see --strip-prefix"
    folder = write_kaldi(tmp_path / "data", wav_scp="rec lists/none.wav\n", text="rec a\n")
    with pytest.raises(DataError, match="no usable row") as caught:  # it has no such option
        write_manifest(kaldi(folder, out=tmp_path / "again"))
    assert str(caught.value).endswith(f"look at {tmp_path}/again.rejects.jsonl")
    [line] = (tmp_path / "again.rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["detail"] == "lists/none.wav"


def kaldi(folder: Path, **options: Any) -> Kaldi:
    given: dict[str, Any] = {"name": "own", "folder": folder, "out": folder.parent / "out", "max_reject_rate": 1.0}
    return Kaldi(**{**given, **options})


def write_kaldi(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_a_kaldi_folder_gives_the_spans_that_lhotse_reads_from_it(tmp_path: Path) -> None:
    from lhotse.kaldi import load_kaldi_data_dir

    folder = write_kaldi(
        tmp_path / "data",
        wav_scp=f"rec1 {tmp_path}/data/a.wav\nrec2 {tmp_path}/data/b.wav\n",
        segments="utt3 rec2 0.5 -1\nutt1 rec1 0.25 1.5\nutt2 rec1 1.5 3.0\n",
        text="utt1 hello there\nutt2 good bye\nutt3 yes\n",
        utt2spk="utt1 s1\nutt2 s1\nutt3 s2\n",
        utt2lang="utt1 en\nutt2 en\nutt3 cy\n",
    )
    sound(folder / "a.wav")
    sound(folder / "b.wav", 2.0)
    write_manifest(kaldi(folder))
    _, theirs, _ = load_kaldi_data_dir(folder, 8000)
    assert theirs is not None
    ours = {row.id.removeprefix("own-"): row for row in utterances(tmp_path / "out")}
    assert set(ours) == {said.id for said in theirs} == {"utt1", "utt2", "utt3"}
    for said in theirs:
        our = ours[said.id]
        assert (our.start, our.duration, our.text) == (said.start, said.duration, said.text)
        assert (our.recording, our.speaker, our.language) == (said.recording_id, f"own-{said.speaker}", said.language)


def test_a_kaldi_folder_without_segments_has_an_utterance_a_file(tmp_path: Path) -> None:
    folder = write_kaldi(tmp_path / "data", wav_scp="u1 a.wav\n", text="u1 hello\n")
    sound(folder / "a.wav")
    write_manifest(kaldi(folder))
    [row] = utterances(tmp_path / "out")
    assert (row.id, row.duration, row.text, row.speaker) == ("own-u1", 3.0, "hello", None)


def test_commands_in_wav_scp_are_rejected_and_never_run(tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    scp = f"u1 touch {proof} |\nu2 touch {proof}; cat a.wav|\nu3 | touch {proof}\nu4 a.ark:77\nu5 a.wav\n"
    folder = write_kaldi(tmp_path / "data", wav_scp=scp, text="".join(f"u{n} hello\n" for n in range(1, 6)))
    sound(folder / "a.wav")
    write_manifest(kaldi(folder))
    assert rejects(tmp_path / "out") == [(f"own-u{n}", "source type not allowed") for n in range(1, 5)]
    segments = "".join(f"s{n} u{n} 0 1\n" for n in range(1, 6))
    write_kaldi(folder, segments=segments, text="".join(f"s{n} hello\n" for n in range(1, 6)))
    write_manifest(kaldi(folder, out=tmp_path / "again"))
    assert [reason for _, reason in rejects(tmp_path / "again")] == ["source type not allowed"] * 4
    assert [row.id for row in utterances(tmp_path / "again")] == ["own-s5"] and not proof.exists()


def test_kaldi_lines_with_damage_are_rejected_one_by_one(tmp_path: Path) -> None:
    folder = write_kaldi(
        tmp_path / "data",
        wav_scp="r1 a.wav\nr2 none.wav\nr3 ../secret.wav\nr4 a.wav\nr4 a.wav\n",
        segments="u1 r1 0 1\nu2 r2 0 1\nu3 r3 0 1\nu4 r4 0 1\nu5 r9 0 1\nu6 r1 0\nu7 r1 2.5 9\nu8 r1 1 1\n"
        "u9 r1 0 1\nua r1 0 1\nu1 r1 1 2\n",
        text=b"u1 hello\nu2 a\nu3 a\nu4 a\nu5 a\nu6 a\nu7 a\nu8 a\nua a\nua b\nub gone\nuc \xff\n",
    )
    sound(folder / "a.wav")
    sound(tmp_path / "secret.wav")
    header = write_manifest(kaldi(folder))
    assert rejects(tmp_path / "out") == [
        ("text:12", "invalid UTF-8"),
        ("own-u2", "missing file"),
        ("own-u3", "outside the data root"),
        ("own-u4", "duplicate id"),  # its recording is twice in wav.scp
        ("own-u5", "missing file"),
        ("own-u6", "malformed row"),
        ("own-u7", "beyond the end"),
        ("own-u8", "zero length"),
        ("own-u9", "missing text"),
        ("own-ua", "duplicate id"),  # its transcript is there twice
        ("own-u1", "duplicate id"),
        ("own-ub", "missing audio"),
    ]
    assert header.rows == 1
    with pytest.raises(DataError, match="no wav.scp; give the folder of a Kaldi data set"):
        write_manifest(kaldi(tmp_path / "data" / "..", out=tmp_path / "again"))


def folder(root: Path, **options: Any) -> Folder:
    given: dict[str, Any] = {"name": "own", "root": root, "out": root.parent / "out", "max_reject_rate": 1.0}
    return Folder(**{**given, **options})


def test_a_folder_pairs_each_recording_with_the_text_beside_it(tmp_path: Path) -> None:
    root = tmp_path / "prompts"
    for name, text in (("s1/b.wav", "Bee.\n"), ("s1/a.WAV", "\ufeffAy."), ("s2/deep/c.flac", "See")):
        (sound(root / name)).with_suffix(".txt").write_text(text, encoding="utf-8")
    (root / "README.md").write_text("not a transcript")
    write_manifest(folder(root, speaker_depth=1, language="en"))
    assert [(row.id, row.text, row.speaker, row.language) for row in utterances(tmp_path / "out")] == [
        ("own-s1/a", "Ay.", "own-s1", "en"),
        ("own-s1/b", "Bee.", "own-s1", "en"),
        ("own-s2/deep/c", "See", "own-s2", "en"),
    ]


def test_a_folder_with_damage_is_read_with_rejects(tmp_path: Path) -> None:
    root = tmp_path / "prompts"
    sound(tmp_path / "secret.wav")
    (tmp_path / "secret.txt").write_text("secret")
    for name in ("alone.wav", "blank.wav", "good.wav", "latin.wav", "leak.wav", "tags.wav", "twice.wav", "twice.flac"):
        sound(root / name)
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    (root / "leak.txt").symlink_to(tmp_path / "secret.txt")
    for name, text in (
        ("blank", "\n"),
        ("good", "yes"),
        ("link", "x"),
        ("only", "x"),
        ("tags", "[noise]"),
        ("twice", "x"),
    ):
        (root / f"{name}.txt").write_text(text)
    (root / "latin.txt").write_bytes("naïve".encode("latin-1"))
    header = write_manifest(folder(root))
    assert rejects(tmp_path / "out") == [
        ("own-alone", "missing text"),
        ("own-blank", "missing text"),
        ("own-latin", "invalid UTF-8"),
        ("own-leak", "outside the data root"),
        ("own-link", "outside the data root"),
        ("own-only", "missing audio"),
        ("own-tags", "tags only"),
        ("own-twice", "duplicate id"),
    ]
    assert header.rows == 2


@pytest.fixture
def prompts() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder / "prompts"


def test_a_folder_that_cannot_be_read_is_a_reject_inside_and_an_error_at_the_top(prompts: Path) -> None:
    root = prompts
    sound(root / "a.wav").with_suffix(".txt").write_text("yes")
    sound(root / "closed" / "b.wav").with_suffix(".txt").write_text("no")
    (root / "closed").chmod(0)
    found = as_nobody(
        lambda: [
            item if isinstance(item, dict) else (item.id, item.reason, item.detail) for item in folder(root).rows()
        ]
    )
    told = "closed: cannot be read: Permission denied; check the mode of closed (d---------)"
    assert f"('closed', 'unreadable folder', '{told}')" in found and "'own-a'" in found
    found = as_nobody(lambda: list(folder(root / "closed").rows()))
    assert found == f"{root}/closed: cannot be read: Permission denied; check the mode of {root}/closed (d---------)"


def test_lists_may_be_compressed_and_a_line_without_end_is_one_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow

    sound(tmp_path / "audio" / "a.wav")
    lines = b"".join(json.dumps({"audio": "a.wav", "text": "a", "id": n}).encode() + b"\n" for n in range(300))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as stream:
        stream.write(lines)
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        files = (tmp_path / name,)
        assert write_manifest(json_lines(tmp_path, [], files=files, out=tmp_path / f"out-{name}")).rows == 300
        files[0].write_bytes(files[0].read_bytes()[:-20])
        with pytest.raises(DataError, match=rf"{name}: unreadable after line \d+"):
            write_manifest(json_lines(tmp_path, [], files=files, out=tmp_path / f"again-{name}"))
    monkeypatch.setattr("megatron_most.data.corpora.lines.LONGEST", 1000)
    rows = [json.dumps({"audio": "a.wav", "text": "a" * 5000}).encode(), {"audio": "a.wav", "text": "short"}]
    write_manifest(json_lines(tmp_path, rows))
    assert rejects(tmp_path / "out") == [("own-list-1", "malformed JSON")]
    assert [row.id for row in utterances(tmp_path / "out")] == ["own-list-2"]
