"""LibriSpeech as unpacked, against Lhotse's recipe on the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.data.corpora import LibriSpeech, write_manifest
from megatron_most.data.manifest import ROWS, open_manifest
from megatron_most.data.rows import Utterance, Word
from megatron_most.errors import DataError

TEXTS = {
    "84-121123-0000": "GO DO YOU HEAR",
    "84-121123-0001": "BUT IN LESS THAN FIVE MINUTES THE STAIRCASE GROANED",
    "174-50561-0000": "FORGOTTEN TOO THE NAME OF GILLIAN",
}
TIMES = [
    '84-121123-0000 ",GO,,DO,YOU,HEAR," "0.490,0.890,1.270,1.380,1.490,1.880,2.085"',
    '84-121123-0001 ",BUT,IN,LESS,THAN,FIVE,MINUTES,THE,STAIRCASE,GROANED," '
    '"0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0,1.1"',
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two chapters of dev-clean in the published layout, with word times for one."""
    root = tmp_path / "LibriSpeech"
    for id, text in TEXTS.items():
        speaker, chapter, number = id.split("-")
        folder = root / "dev-clean" / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        wave = np.random.default_rng(int(number)).standard_normal(33360 + 16 * int(number)) * 0.1
        soundfile.write(folder / f"{id}.flac", wave, 16000)
        with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
            file.write(f"{id} {text}\n")
    (root / "dev-clean" / "84" / "121123" / "84-121123.alignment.txt").write_text("\n".join(TIMES) + "\n")
    return root


def librispeech(root: Path, **options: Any) -> LibriSpeech:
    given: dict[str, Any] = {"root": root, "parts": ("dev-clean",), "out": root.parent / "out", "max_reject_rate": 1.0}
    return LibriSpeech(**{**given, **options})


def utterances(folder: Path) -> dict[str, Utterance]:
    rows = list(open_manifest(folder).rows())
    return {row.id: row for row in rows if isinstance(row, Utterance)}


def rejects(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["id"], row["reason"]) for row in map(json.loads, lines)]


def test_every_cut_is_that_of_lhotses_recipe(root: Path) -> None:
    from lhotse import CutSet
    from lhotse.recipes.librispeech import prepare_librispeech

    header = write_manifest(librispeech(root))
    theirs = prepare_librispeech(root, dataset_parts="dev-clean")["dev-clean"]
    cuts = {cut.supervisions[0].id: cut for cut in CutSet.from_manifests(**theirs)}
    ours = {cut.id: cut for cut in CutSet.from_file(root.parent / "out" / ROWS)}
    assert set(ours) == {f"librispeech-{id}" for id in cuts} and header.rows == len(cuts) == 3
    for id, their in cuts.items():
        our, said = ours[f"librispeech-{id}"], their.supervisions[0]
        assert (our.start, our.duration, our.num_samples) == (their.start, their.duration, their.num_samples)
        assert our.supervisions[0].text == said.text == TEXTS[id]
        assert our.supervisions[0].speaker == f"librivox-{said.speaker}"
        words = [word for word in (said.alignment or {}).get("word", []) if word.symbol]
        assert [tuple(word) for word in (our.supervisions[0].alignment or {}).get("word", [])] == list(
            map(tuple, words)
        )
        assert np.array_equal(our.with_recording_path_prefix(root).load_audio(), their.load_audio())
    assert header.seconds == round(sum(cut.duration for cut in cuts.values()), 3)


def test_words_and_text_are_normalised_alike(root: Path) -> None:
    write_manifest(librispeech(root, normalisation="lower"))
    row = utterances(root.parent / "out")["librispeech-84-121123-0000"]
    assert row.text == "go do you hear" == " ".join(word.text for word in row.words)
    assert row.words[1] == Word(text="do", start=1.27, duration=0.11) and row.speaker == "librivox-84"
    header = open_manifest(root.parent / "out").header
    assert (header.normalisation, header.split, header.licence) == ("lower", "dev-clean", "CC-BY-4.0")


def test_word_times_may_lie_in_a_folder_of_their_own(root: Path) -> None:
    name = Path("dev-clean/84/121123/84-121123.alignment.txt")
    (root.parent / "times" / name).parent.mkdir(parents=True)
    (root / name).rename(root.parent / "times" / name)
    write_manifest(librispeech(root, alignments=root.parent / "times"))
    assert len(utterances(root.parent / "out")["librispeech-84-121123-0001"].words) == 9


def test_bad_lines_and_files_are_rejected_one_by_one(root: Path) -> None:
    folder = root / "dev-clean" / "174" / "50561"
    (root.parent / "50561-0000.flac").write_bytes((folder / "174-50561-0000.flac").read_bytes())
    (folder / "174-50561-0003.flac").write_bytes(b"fLaC and nothing else")
    (folder / "174-50561-0004.flac").touch()
    (folder / "174-50561-0006.flac").symlink_to(root.parent / "50561-0000.flac")
    (folder / "174-50561-0007.flac").write_bytes((folder / "174-50561-0000.flac").read_bytes())
    with (folder / "174-50561.trans.txt").open("ab") as file:
        file.write(b"174-50561-0001\n174-50561-0002 NO FILE\n174-50561-0003 DAMAGED\n174-50561-0004 EMPTY\n")
        file.write(b"../../../50561-0000 OUT\n/etc/passwd-0-1 OUT\n174-50561-0006 LINK\n")
        file.write(b"174-50561-0007 \xff\xfe\n174-50561-0000 TWICE\n174-50561-0007 <UNK>\n")
    (folder / "174-50561.alignment.txt").write_text("one two\n")
    header = write_manifest(librispeech(root))
    assert rejects(root.parent / "out") == [
        ("librispeech-174-50561.alignment.txt", "bad word times"),
        ("librispeech-174-50561-0001", "missing text"),
        ("librispeech-174-50561-0002", "missing file"),
        ("librispeech-174-50561-0003", "unreadable audio"),
        ("librispeech-174-50561-0004", "empty file"),
        ("librispeech-../../../50561-0000", "malformed row"),
        ("librispeech-/etc/passwd-0-1", "malformed row"),
        ("librispeech-174-50561-0006", "outside the data root"),
        ("librispeech-174-50561.trans.txt:9", "invalid UTF-8"),
        ("librispeech-174-50561-0000", "duplicate id"),
        ("librispeech-174-50561-0007", "tags only"),
    ]
    assert header.rows == 3


def test_a_part_that_is_not_there_is_an_error_that_lists_those_that_are(root: Path) -> None:
    with pytest.raises(DataError, match="no such part; .* holds dev-clean"):
        write_manifest(librispeech(root, parts=("train-clean-100",)))
