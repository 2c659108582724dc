"""VoxPopuli in both published layouts, against Lhotse's recipe on the same files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.data.corpora import VoxPopuli, write_manifest
from megatron_most.data.manifest import ROWS, open_manifest
from megatron_most.data.rows import Utterance
from megatron_most.errors import DataError

HEADER = "session_id|id_|original_text|normed_text|speaker_id|split|gender|start_time|end_time|vad|is_gold_transcript"
SESSIONS = ("20180206-0900-PLENARY-15", "20190101-0900-PLENARY-3")


def row(session: str, id: str, text: str, split: str, start: object, end: object, speaker: str = "124737") -> str:
    return (
        f'{session}|{id}|"{text.title()}, ""|"" sir."|{text}|{speaker}|{split}|female|{start}|{end}|"[(0.1, 0.2)]"|True'
    )


ROWS_EN = [
    row(SESSIONS[0], "en_20180206-16:10:06_5", "madam president", "train", 1.25, 3.4),
    row(SESSIONS[0], "en_20180206-16:10:06_6", "thank you", "test", 3.5, 4.25),
    row(SESSIONS[1], "en_20190101-09:00:00_0", "the next item", "train", 0.123456789, 2.5, "None"),
    row(SESSIONS[0], "en_20180206-16:10:06_7", "the debate is closed", "train", 5, 7.998),
]


def ogg(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(1).uniform(-0.1, 0.1, int(seconds * 16000)), 16000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for session in SESSIONS:
        ogg(tmp_path / "vox" / "raw_audios" / "en" / session[:4] / f"{session}_en.ogg", 8.0)
    write_list(tmp_path / "vox", ROWS_EN)
    return tmp_path / "vox"


def write_list(root: Path, rows: list[str]) -> None:
    (root / "asr_en.tsv.gz").write_bytes(gzip.compress("\n".join([HEADER, *rows, ""]).encode("latin-1")))


def voxpopuli(root: Path, **options: Any) -> VoxPopuli:
    given: dict[str, Any] = {"root": root, "language": "en", "out": root.parent / "out", "max_reject_rate": 1.0}
    return VoxPopuli(**{**given, **options})


def utterances(folder: Path) -> list[Utterance]:
    return [row for row in open_manifest(folder).rows() if isinstance(row, Utterance)]


def rejects(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["id"], row["reason"]) for row in map(json.loads, lines)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_cut_is_that_of_lhotses_recipe(root: Path, split: str) -> None:
    from lhotse import CutSet, SupervisionSet
    from lhotse.recipes.voxpopuli import prepare_voxpopuli

    write_list(root, [*ROWS_EN, row(SESSIONS[0], "d", "dev", "dev", 0, 1)])  # the recipe needs a row of each split
    write_manifest(voxpopuli(root, split=split))
    theirs = prepare_voxpopuli(root, output_dir=root, lang="en")[split]
    assert isinstance(theirs["supervisions"], SupervisionSet)
    sounds = {recording.id: recording for recording in theirs["recordings"]}
    spans = {(said.recording_id, said.start): said for said in theirs["supervisions"]}
    ours = list(CutSet.from_file(root.parent / "out" / ROWS))
    assert len(ours) == len(spans) == {"train": 3, "test": 1}[split]
    for our in ours:
        said, heard = spans[our.recording.id, our.start], sounds[our.recording.id]
        assert (our.duration, our.supervisions[0].text) == (said.duration, said.text)
        assert (our.recording.num_samples, our.recording.duration) == (heard.num_samples, heard.duration)
        assert root / our.recording.sources[0].source == Path(heard.sources[0].source)
        assert our.supervisions[0].speaker == (None if said.speaker == "None" else f"voxpopuli-{said.speaker}")


def test_ids_are_the_corpus_own_and_alike_in_both_layouts(root: Path) -> None:
    write_manifest(voxpopuli(root))
    raw = utterances(root.parent / "out")
    assert raw[0].id == f"voxpopuli-en-{SESSIONS[0]}-en_20180206-16:10:06_5"
    folder = root / "transcribed_data" / "en"
    lines = ["id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender"]
    for line in (ROWS_EN[0], ROWS_EN[2], ROWS_EN[3]):
        session, id, _, _, *_ = line.split("|")
        text, speaker = line.split("|")[4:6]
        ogg(folder / session[:4] / f"{session}-{id}.ogg", 1.5)
        lines.append(f'{session}-{id}\t"{text.title()}\t{text}\t{speaker}\ttrain\tfemale')
    (folder / "asr_train.tsv").write_text("\n".join(lines) + "\n")
    write_manifest(voxpopuli(root, out=root.parent / "cut"))
    cut = utterances(root.parent / "cut")
    assert [(u.id, u.text, u.speaker) for u in cut] == [(u.id, u.text, u.speaker) for u in raw]
    assert {(u.start, u.duration) for u in cut} == {(0.0, 1.5)}
    assert cut[0].audio == f"transcribed_data/en/2018/{SESSIONS[0]}-en_20180206-16:10:06_5.ogg"
    write_manifest(voxpopuli(root, layout="raw", out=root.parent / "raw"))
    assert utterances(root.parent / "raw") == raw


def test_the_sessions_own_sound_goes_before_the_interpreters_channel(root: Path) -> None:
    ogg(root / "raw_audios" / "original" / "2018" / f"{SESSIONS[0]}_original.ogg", 8.0)
    write_manifest(voxpopuli(root))
    assert [Path(u.audio).stem.rpartition("_")[2] for u in utterances(root.parent / "out")] == [
        "original",
        "en",
        "original",
    ]


def test_the_text_is_normalised_or_as_printed(root: Path) -> None:
    write_manifest(voxpopuli(root, text="original"))
    assert utterances(root.parent / "out")[0].text == 'Madam President, "|" sir.'


@pytest.mark.parametrize(
    ("printed", "text"),
    [
        ('"Thank you, he said.', '"Thank you, he said.'),  # never closed
        ('"No," he said.', '"No," he said.'),
        ('He said "no', 'He said "no'),
        ('"""No,"" he said."', '"No," he said.'),  # as csv writes it
        ('"One | or ""two"""', 'One | or "two"'),
        ("Nobody's.", "Nobody's."),
    ],
)
def test_a_quote_spoils_no_row_and_least_of_all_the_next(root: Path, printed: str, text: str) -> None:
    rows = [f"{SESSIONS[0]}|a|{printed}|normed|1|train|male|1|2|[]|True", *ROWS_EN]
    rows.append(f'{SESSIONS[0]}|z|"Last|last|1|train|male|2|3|[]|True')
    write_list(root, rows)
    write_manifest(voxpopuli(root, text="original"))
    found = utterances(root.parent / "out")
    assert [row.id[-1] for row in found] == ["a", "5", "0", "7", "z"] and not rejects(root.parent / "out")
    assert (found[0].text, found[-1].text) == (text, '"Last')


def test_bad_rows_are_rejected_one_by_one(root: Path) -> None:
    (root / "raw_audios" / "en" / "2018" / "broken_en.ogg").write_bytes(b"OggS and no more")
    session = SESSIONS[0]
    bad = [
        row("20200101-none", "a", "no sound", "train", 1, 2),
        row("../../raw_audios/en/2018/broken", "b", "a path", "train", 1, 2),
        row("broken", "c", "damaged", "train", 1, 2),
        row(session, "d", "", "train", 1, 2),
        row(session, "e", "beyond", "train", 7, 9),
        row(session, "f", "backwards", "train", 3, 2),
        row(session, "g", "not a number", "train", "nan", 2),
        row(session, "h", "no number", "train", "", 2),
        row(session, "i", "caf\xe9", "train", 1, 2),
        f"{session}|j|short",
        ROWS_EN[0],
    ]
    write_list(root, [*ROWS_EN, *bad])
    header = write_manifest(voxpopuli(root))
    assert [(id.rpartition("-")[2], reason) for id, reason in rejects(root.parent / "out")] == [
        ("a", "missing file"),
        ("b", "missing file"),
        ("c", "truncated audio"),
        ("d", "missing text"),
        ("e", "beyond the end"),
        ("f", "zero length"),
        ("g", "malformed row"),
        ("h", "malformed row"),
        ("asr_en.tsv.gz:14", "invalid UTF-8"),
        ("asr_en.tsv.gz:15", "malformed row"),
        ("16:10:06_5", "duplicate id"),
    ]
    assert header.rows == 3


def test_what_is_not_there_is_an_error_and_nothing_is_fetched(root: Path) -> None:
    with pytest.raises(DataError, match="asr_de.tsv.gz: missing, and not in .*transcribed_data/de either; fetch"):
        (root / "raw_audios" / "de").mkdir()
        write_manifest(voxpopuli(root, language="de"))
    with pytest.raises(DataError, match="raw_audios/original, .*raw_audios/fr: neither folder is there"):
        write_manifest(voxpopuli(root, language="fr"))
    (root / "asr_en.tsv.gz").write_bytes(gzip.compress(b"session_id|text\na|b\n"))
    with pytest.raises(DataError, match="no column id_, normed_text, .*; the columns found are session_id, text"):
        write_manifest(voxpopuli(root))
