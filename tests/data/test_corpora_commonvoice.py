"""Common Voice as unpacked, against the function Lhotse's recipe calls for each row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.data.corpora import CommonVoice, write_manifest
from megatron_most.data.manifest import ROWS, open_manifest
from megatron_most.data.rows import Utterance
from megatron_most.errors import DataError
from megatron_most.speech.audio import probe, read_span

HEADER = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
)
FRAME = 1152


def mp3(path: Path, seconds: float, rate: int) -> None:
    """As the publisher's encoder wrote to a pipe: without the header that states the length."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(3).uniform(-0.2, 0.2, int(seconds * rate))

    class Pipe:
        def __init__(self, file: Any) -> None:
            self.write = file.write

    with path.open("wb") as file, av.open(Pipe(file), "w", format="mp3") as container:
        stream: Any = container.add_stream("libmp3lame", rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def row(clip: str, speaker: str, sentence: str) -> str:
    columns = [speaker, clip, "d0a1", sentence, "", "2", "0", "twenties", "female", "", "", "cy", ""]
    return "\t".join(columns)


def write_list(folder: Path, split: str, rows: list[str | bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, bytes) else line.encode() for line in [HEADER.replace(" ", "\t"), *rows]]
    (folder / f"{split}.tsv").write_bytes(b"\n".join(lines) + b"\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One language of a release in the published layout."""
    root = tmp_path / "cv-corpus-17.0-2024-03-15"
    folder = root / "cy"
    write_list(folder, "dev", [row("common_voice_cy_3.mp3", "speaker-b", "Bore da.")])
    write_list(folder, "test", [row("common_voice_cy_4.mp3", "speaker-c", "Nos da.")])
    rows = [
        row("common_voice_cy_1.mp3", "speaker-a", '"""Helo,"" meddai hi."'),
        row("common_voice_cy_2.mp3", "speaker-a", 'Mae "hi yn braf.'),
        row("common_voice_cy_5.mp3", "speaker-b", "Llais o dev."),
        row("common_voice_cy_6.mp3", "speaker-c", "Llais o test."),
    ]
    write_list(folder, "train", list(rows))
    for number in range(1, 7):
        mp3(folder / "clips" / f"common_voice_cy_{number}.mp3", 1 + number / 10, 48000 if number % 2 else 32000)
    return root


def commonvoice(root: Path, **options: Any) -> CommonVoice:
    given: dict[str, Any] = {"root": root, "language": "cy", "out": root.parent / "out", "max_reject_rate": 1.0}
    return CommonVoice(**{**given, **options})


def utterances(folder: Path) -> list[Utterance]:
    return [row for row in open_manifest(folder).rows() if isinstance(row, Utterance)]


def rejects(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["id"], row["reason"]) for row in map(json.loads, lines)]


def write_durations(root: Path) -> None:
    """The publisher's count: whole frames, in milliseconds."""
    lines = ["clip\tduration[ms]"]
    for clip in sorted((root / "cy" / "clips").glob("*.mp3")):
        info = probe(clip)
        assert info.num_samples % FRAME == 0
        lines.append(f"{clip.name}\t{round(info.num_samples / info.sample_rate * 1000)}")
    (root / "cy" / "clip_durations.tsv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("listed", [False, True])
def test_every_cut_is_that_of_lhotses_recipe(root: Path, listed: bool) -> None:
    from lhotse import CutSet
    from lhotse.recipes.commonvoice import _parse_utterance

    if listed:
        write_durations(root)
    write_manifest(commonvoice(root, speaker_disjoint=False, normalisation="none"))
    ours = list(CutSet.from_file(root.parent / "out" / ROWS))
    with (root / "cy" / "train.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(ours) == len(rows) == 4
    for our, columns in zip(ours, rows, strict=True):
        parsed = _parse_utterance(root / "cy", "cy", columns)
        assert parsed is not None
        recording, said = parsed
        assert our.id == our.supervisions[0].id == f"commonvoice-cy-{said.id}"
        assert our.supervisions[0].text == said.text and our.supervisions[0].language == said.language
        assert our.supervisions[0].speaker == f"commonvoice-{said.speaker}"
        assert our.recording.id == recording.id and our.sampling_rate == recording.sampling_rate
        # libsndfile estimates the length of an mp3 that does not state it; ours is what decoding gives.
        assert our.duration == pytest.approx(recording.duration, abs=0.02)
        decoded, rate = soundfile.read(root / our.recording.sources[0].source)
        assert our.num_samples == len(decoded) and our.sampling_rate == rate
        assert len(read_span(root / our.recording.sources[0].source, 0.0, our.duration, sample_rate=rate)) == len(
            decoded
        )


def test_a_clip_that_states_its_length_is_believed_over_the_list(root: Path) -> None:
    clip = root / "cy" / "clips" / "common_voice_cy_1.mp3"
    soundfile.write(
        clip, np.random.default_rng(0).uniform(-0.1, 0.1, 60000), 48000
    )  # with a header, and a delay taken off
    write_durations_of = "clip\tduration[ms]\ncommon_voice_cy_1.mp3\t1320\ncommon_voice_cy_2.mp3\tmany\n"
    (root / "cy" / "clip_durations.tsv").write_text(write_durations_of)
    write_manifest(commonvoice(root))
    assert [(u.id, u.duration) for u in utterances(root.parent / "out")] == [("commonvoice-cy-common_voice_cy_1", 1.25)]
    assert rejects(root.parent / "out")[0] == ("commonvoice-cy-common_voice_cy_2", "malformed row")


def test_a_speaker_of_dev_or_test_is_kept_out_of_train_only(root: Path) -> None:
    header = write_manifest(commonvoice(root))
    assert [row.speaker for row in utterances(root.parent / "out")] == ["commonvoice-speaker-a"] * 2
    assert header.rejects == {"speaker in an evaluation split": 2}
    for split in ("dev", "test"):
        assert write_manifest(commonvoice(root, split=split, out=root.parent / split)).rejects == {}
    write_manifest(commonvoice(root, speaker_disjoint=False, out=root.parent / "all"))
    assert len(utterances(root.parent / "all")) == 4
    (root / "cy" / "dev.tsv").unlink()
    with pytest.raises(DataError, match="dev.tsv: missing; .*--no-speaker-disjoint"):
        write_manifest(commonvoice(root, out=root.parent / "none"))


def test_quotes_are_mended_and_the_header_says_so(root: Path) -> None:
    write_manifest(commonvoice(root))
    assert [row.text for row in utterances(root.parent / "out")] == ['"Helo," meddai hi.', "Mae hi yn braf."]
    header = open_manifest(root.parent / "out").header
    assert (header.normalisation, header.language, header.licence) == ("commonvoice", "cy", "CC0-1.0")


def test_a_quote_that_is_never_closed_takes_no_other_row_with_it(root: Path) -> None:
    said = ['"Helo, meddai hi.', 'Mae "hi', '"', "Ie."]
    write_list(root / "cy", "train", [row("common_voice_cy_1.mp3", "speaker-a", text) for text in said])
    write_manifest(commonvoice(root, normalisation="none", max_reject_rate=1.0))
    assert [row.text for row in utterances(root.parent / "out")] == said[:1]
    assert [reason for _, reason in rejects(root.parent / "out")] == [
        "duplicate id",
        "tags only",
        "duplicate id",
    ]  # all were seen


def test_the_release_is_found_below_the_root_but_never_guessed(root: Path) -> None:
    above = root.parent
    write_manifest(commonvoice(above, out=above / "out"))
    assert utterances(above / "out")[0].audio == "cv-corpus-17.0-2024-03-15/cy/clips/common_voice_cy_1.mp3"
    (above / "cv-corpus-18.0-2024-06-14" / "cy").mkdir(parents=True)
    with pytest.raises(DataError, match="cy is in several releases .cv-corpus-17.0-2024-03-15, cv-corpus-18.0"):
        write_manifest(commonvoice(above, out=above / "again"))
    with pytest.raises(DataError, match="no language 'br'; the languages found are cy"):
        write_manifest(commonvoice(root, language="br", out=above / "again"))
    with pytest.raises(DataError, match="validated.tsv: no such list; those found are dev, test, train"):
        write_manifest(commonvoice(root, split="validated", out=above / "again"))


def test_bad_rows_are_rejected_one_by_one(root: Path) -> None:
    (root / "cy" / "clips" / "text.mp3").write_text("no sound")
    good = row("common_voice_cy_1.mp3", "speaker-a", "Helo.")
    rows: list[str | bytes] = [
        good,
        row("common_voice_cy_2.mp3", "speaker-a", ""),
        row("common_voice_cy_2.mp3", "speaker-a", "[chwerthin]"),
        row("common_voice_cy_99.mp3", "speaker-a", "Ar goll."),
        row("../../../secret.mp3", "speaker-a", "Allan."),
        row("/etc/passwd", "speaker-a", "Allan."),
        row("text.mp3", "speaker-a", "Testun."),
        "only\ttwo",
        row("common_voice_cy_2.mp3", "speaker-a", "?").encode().replace(b"?", b"\xff"),
        good,
    ]
    write_list(root / "cy", "train", rows)
    header = write_manifest(commonvoice(root))
    assert rejects(root.parent / "out") == [
        ("commonvoice-cy-common_voice_cy_2", "missing text"),
        ("commonvoice-cy-common_voice_cy_2", "tags only"),
        ("commonvoice-cy-common_voice_cy_99", "missing file"),
        ("commonvoice-cy-secret", "outside the data root"),
        ("commonvoice-cy-passwd", "missing file"),
        ("commonvoice-cy-text", "unreadable audio"),
        ("train.tsv:9", "malformed row"),
        ("train.tsv:10", "invalid UTF-8"),
        ("commonvoice-cy-common_voice_cy_1", "duplicate id"),
    ]
    assert header.rows == 1


def test_a_list_without_a_needed_column_is_an_error_that_names_those_there_are(root: Path) -> None:
    (root / "cy" / "train.tsv").write_text("client_id\tpath\ttext\na\tb\tc\n")
    with pytest.raises(DataError, match="no column sentence; the columns found are client_id, path, text"):
        write_manifest(commonvoice(root))
