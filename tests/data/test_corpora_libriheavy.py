"""LibriHeavy's published cuts, and any Lhotse cuts, read into manifests that Lhotse opens again."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.data.corpora import Cuts, LibriHeavy, write_manifest
from megatron_most.data.manifest import ROWS, open_manifest
from megatron_most.data.rows import Utterance, Word
from megatron_most.errors import DataError

RATE = 16000
BOOK = "small/100/sea_fairies_0812_librivox_64kb_mp3/01_baum_sea_fairies_64kb"


def sound(root: Path, name: str, seconds: float = 12.0) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(7).standard_normal(int(seconds * RATE)) * 0.1
    soundfile.write(path, wave, RATE, format="FLAC")


def published(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A cut with the fields, the order and the rounding of the published lists."""
    said = {
        "id": f"{BOOK}_{number}",
        "recording_id": BOOK,
        "start": 0,
        "duration": 2.36,
        "channel": 0,
        "language": "English",
        "speaker": "100",
        "custom": {
            "texts": [f"The little girl, “{number}”,\nwas thoughtful.", f"THE LITTLE GIRL {number} WAS THOUGHTFUL"],
            "pre_texts": ["Before.", "BEFORE"],
            "begin_byte": 4993,
            "end_byte": 5120,
        },
    }
    recording = {
        "id": BOOK,
        "sources": [{"type": "file", "channels": [0], "source": f"download/librilight/{BOOK}.flac"}],
        "sampling_rate": RATE,
        "num_samples": 12 * RATE,
        "duration": 12.0,
        "channel_ids": [0],
    }
    made = {
        "id": f"{BOOK}_{number}",
        "start": 1.125 * number,
        "duration": 2.36,
        "channel": 0,
        "supervisions": [said],
        "recording": recording,
        "custom": {"text_path": "download/librilight_text/output_text_small_cleaned/Sea Fairies/text.txt"},
        "type": "MonoCut",
    }
    return {**made, **changes}


def write_cuts(path: Path, cuts: list[Any]) -> Path:
    lines = [cut if isinstance(cut, bytes) else json.dumps(cut, ensure_ascii=False).encode() for cut in cuts]
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    sound(tmp_path / "librilight", f"{BOOK}.flac")
    return tmp_path / "librilight"


def libriheavy(tmp_path: Path, audio: Path, cuts: list[Any], **options: Any) -> LibriHeavy:
    path = write_cuts(tmp_path / "libriheavy_cuts_small.jsonl.gz", cuts)
    return LibriHeavy(
        **{"cuts": (path,), "audio_root": audio, "out": tmp_path / "out", "max_reject_rate": 1.0, **options}
    )


def any_cuts(tmp_path: Path, audio: Path, cuts: list[Any], **options: Any) -> Cuts:
    path = write_cuts(tmp_path / "cuts.jsonl", cuts)
    given = {"name": "own", "cuts": (path,), "audio_root": audio, "strip_prefix": "download/librilight/"}
    return Cuts(**{**given, "out": tmp_path / "out", "max_reject_rate": 1.0, **options})


def rejects(folder: Path) -> list[tuple[str, str]]:
    path = folder / "rejects.jsonl"
    return [(row["id"], row["reason"]) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


def utterances(folder: Path) -> list[Utterance]:
    rows = list(open_manifest(folder).rows())
    assert all(isinstance(row, Utterance) for row in rows)
    return rows  # type: ignore[return-value]


def test_lhotse_opens_the_manifest_and_hears_the_same_spans(tmp_path: Path, audio: Path) -> None:
    from lhotse import CutSet

    given = [published(n) for n in range(5)]
    header = write_manifest(libriheavy(tmp_path, audio, given))
    theirs = CutSet.from_file(tmp_path / "libriheavy_cuts_small.jsonl.gz")
    ours = CutSet.from_file(tmp_path / "out" / ROWS)
    assert ours.is_lazy and header.rows == 5 and header.seconds == pytest.approx(5 * 2.36)
    pairs = list(zip(ours, theirs, strict=True))
    for our, their in pairs:
        assert (our.start, our.duration, our.recording.num_samples) == (
            their.start,
            their.duration,
            their.recording.num_samples,
        )
        assert our.id == f"libriheavy-{their.id}"
        assert our.supervisions[0].text == " ".join(their.supervisions[0].custom["texts"][0].split())
        assert our.supervisions[0].speaker == "librivox-100" and our.supervisions[0].language == "en"
    whole, _ = soundfile.read(audio / f"{BOOK}.flac", dtype="float32")
    wave = pairs[3][0].with_recording_path_prefix(audio).load_audio()[0]
    assert np.array_equal(wave, whole[int(3.375 * RATE) :][: len(wave)]) and len(wave) == int(2.36 * RATE)


def test_the_text_is_the_books_or_the_recognisers_or_the_cuts_own(tmp_path: Path, audio: Path) -> None:
    own = published(1)
    own["supervisions"][0]["text"] = "own text"
    found = {}
    for text in ("punctuated", "plain", "given"):
        write_manifest(libriheavy(tmp_path, audio, [own], text=text, out=tmp_path / text))
        found[text] = utterances(tmp_path / text)[0].text
    assert found == {
        "punctuated": "The little girl, “1”, was thoughtful.",
        "plain": "THE LITTLE GIRL 1 WAS THOUGHTFUL",
        "given": "own text",
    }


def test_paths_count_from_the_audio_root_and_the_header_says_which(tmp_path: Path, audio: Path) -> None:
    write_manifest(libriheavy(tmp_path, audio, [published()]))
    manifest = open_manifest(tmp_path / "out")
    [row] = utterances(tmp_path / "out")
    assert row.audio == f"{BOOK}.flac" and manifest.audio_root == audio.resolve()
    assert manifest.header.corpus == "libriheavy" and manifest.header.language == "en"
    absolute = published()
    absolute["recording"]["sources"][0]["source"] = str(audio / f"{BOOK}.flac")
    write_manifest(libriheavy(tmp_path, audio, [absolute], out=tmp_path / "again"))
    assert utterances(tmp_path / "again")[0].audio == f"{BOOK}.flac"


def damaged_cuts(audio: Path) -> dict[str, tuple[Any, str]]:
    def changed(number: int, where: tuple[Any, ...], value: Any) -> dict[str, Any]:
        cut: Any = published(number)
        inner = cut
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = value
        return cut

    source, said = ("recording", "sources", 0, "source"), ("supervisions", 0)
    (audio / "empty.flac").touch()
    (audio / "link.flac").symlink_to(audio.parent / "secret.flac")
    (audio / "loop.flac").symlink_to(audio / "loop.flac")
    sound(audio.parent, "secret.flac", 1)
    return {
        "no json": (b'{"id": "x", ', "malformed JSON"),
        "no object": (b"[1, 2]", "malformed JSON"),
        "too deep": (b'{"a": ' + b"[" * 100_000, "malformed JSON"),
        "no utf-8": (b'{"id": "\xff\xfe"}', "invalid UTF-8"),
        "no text": (changed(1, (*said, "custom", "texts"), ["", "A"]), "missing text"),
        "no texts": (changed(1, (*said, "custom"), None), "missing text"),
        "tags": (changed(1, (*said, "custom", "texts"), ["[noise] <unk>", "A"]), "tags only"),
        "half a character": (changed(1, (*said, "custom", "texts"), ["\ud800", "A"]), "invalid UTF-8"),
        "zero length": (changed(1, ("duration",), 0), "zero length"),
        "negative": (changed(1, ("duration",), -1.0), "zero length"),
        "not a number": (changed(1, ("duration",), float("nan")), "malformed row"),
        "huge": (changed(1, ("start",), 10**400), "malformed row"),
        "beyond": (changed(1, ("start",), 11.0), "beyond the end"),
        "samples": (changed(1, ("recording", "num_samples"), 12 * RATE - 4000), "malformed row"),
        "missing": (changed(1, source, "download/librilight/small/none.flac"), "missing file"),
        "folder": (changed(1, source, "download/librilight/small"), "not a file"),
        "empty": (changed(1, source, "empty.flac"), "empty file"),
        "traversal": (changed(1, source, "../secret.flac"), "outside the data root"),
        "absolute": (changed(1, source, str(audio.parent / "secret.flac")), "outside the data root"),
        "link": (changed(1, source, "link.flac"), "outside the data root"),
        "loop": (changed(1, source, "loop.flac"), "outside the data root"),
        "zero byte": (changed(1, source, "a\0b.flac"), "missing file"),
        "long name": (changed(1, source, "a" * 5000), "missing file"),
        "surrogate": (changed(1, source, "a\ud800.flac"), "invalid UTF-8"),
        "source": (changed(1, ("recording", "sources", 0), "x"), "malformed row"),
        "no id": (changed(1, ("id",), None), "malformed row"),
        "odd id": (changed(1, ("id",), {"a": 1}), "malformed row"),
        "no recording": (changed(1, ("recording",), None), "malformed row"),
        "mixed": (changed(1, ("type",), "MixedCut"), "not a MonoCut"),
        "padding": ({"id": "p", "duration": 1.0, "type": "PaddingCut"}, "not a MonoCut"),
        "multi": (changed(1, ("type",), "MultiCut"), "not a MonoCut"),
        "speed": (changed(1, ("recording", "transforms"), [{"name": "Speed"}]), "transformed audio"),
        "url": (changed(1, ("recording", "sources", 0, "type"), "url"), "source type not allowed"),
        "memory": (changed(1, ("recording", "sources", 0, "type"), "memory"), "source type not allowed"),
        "duplicate": (published(0), "duplicate id"),
    }  # fmt: skip


@pytest.mark.parametrize("make", [libriheavy, any_cuts])
def test_each_damaged_cut_is_rejected_for_its_reason_and_the_rest_is_kept(
    make: Any, tmp_path: Path, audio: Path
) -> None:
    damage = damaged_cuts(audio)
    if make is any_cuts:  # their text is the supervision's own
        damage = {
            name: pair
            for name, pair in damage.items()
            if name not in ("no text", "no texts", "tags", "half a character")
        }
    cuts = [cut if isinstance(cut, bytes) else json.dumps(cut).encode() for cut, _ in damage.values()]
    good = [published(n) for n in range(4)]
    for cut in good:
        cut["supervisions"][0]["text"] = "hello"
    if make is any_cuts:
        cuts = [line.replace(b'"custom": {"texts"', b'"text": "hello", "custom": {"texts"') for line in cuts]
    header = write_manifest(make(tmp_path, audio, [*good[:2], *cuts, *good[2:]]))
    found = dict(zip(damage, [reason for _, reason in rejects(tmp_path / "out")], strict=True))
    assert found == {name: reason for name, (_, reason) in damage.items()}
    assert header.rows == 4 and sum(header.rejects.values()) == len(damage)


def test_a_command_source_is_rejected_and_never_run(tmp_path: Path, audio: Path) -> None:
    proof = tmp_path / "it-ran"
    cut = published(1)
    cut["supervisions"][0]["text"] = "hello"
    cut["recording"]["sources"] = [{"type": "command", "channels": [0], "source": f"touch {proof}"}]
    for make in (libriheavy, any_cuts):
        with pytest.raises(DataError, match="no usable row .rejected: 1 source type not allowed."):
            write_manifest(make(tmp_path, audio, [cut]))
    assert not proof.exists()
    from lhotse import MonoCut

    with pytest.raises(Exception):  # noqa: B017 - whatever comes of it: the command does run where Lhotse opens the cut
        MonoCut.from_dict(cut).load_audio()
    assert proof.exists()


def test_a_cut_rounded_past_the_end_stops_there(tmp_path: Path, audio: Path) -> None:
    write_manifest(libriheavy(tmp_path, audio, [published(1, start=9.65)]))
    [row] = utterances(tmp_path / "out")
    assert (row.start, row.duration) == (9.65, 2.35)


def test_a_row_is_what_one_supervision_covers(tmp_path: Path, audio: Path) -> None:
    cut = published(1, start=2.0, duration=6.0)
    words = [["one", 1.5, 0.2], ["", 1.7, 0.1], ["two", 1.9, 0.3]]
    cut["supervisions"] = [
        {"id": "a", "start": 0.0, "duration": 1.0, "text": "first", "speaker": "x", "language": "fr"},
        {"id": "b", "start": 1.25, "duration": 2.0, "text": "one two", "alignment": {"word": words}},
        {"id": "c", "start": 5.0, "duration": 4.0, "text": "beyond"},
    ]
    write_manifest(any_cuts(tmp_path, audio, [cut]))
    first, second = utterances(tmp_path / "out")
    assert (first.id, first.start, first.duration, first.speaker, first.language) == ("own-a", 2.0, 1.0, "own-x", "fr")
    assert (second.id, second.start, second.duration, second.text) == ("own-b", 3.25, 2.0, "one two")
    assert second.words == (Word(text="one", start=0.25, duration=0.2), Word(text="two", start=0.65, duration=0.3))
    assert rejects(tmp_path / "out") == [("c", "beyond the end")]


def test_speech_without_text_is_taken_where_asked_for(tmp_path: Path, audio: Path) -> None:
    cuts = [published(1, supervisions=[]), published(2, supervisions=[])]
    write_manifest(any_cuts(tmp_path, audio, cuts, needs_text=False))
    assert [(row.text, row.duration) for row in utterances(tmp_path / "out")] == [(None, 2.36)] * 2


def test_a_gzip_cut_short_stops_the_run_and_names_the_line(tmp_path: Path, audio: Path) -> None:
    corpus = libriheavy(tmp_path, audio, [published(n) for n in range(2000)])
    path = corpus.cuts[0]
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"libriheavy_cuts_small.jsonl.gz: unreadable after line \d+: .*fetch"):
        write_manifest(corpus)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()
    report = json.loads((tmp_path / "out.rejects.jsonl").read_text().splitlines()[-1])
    assert report["reason"] == "unreadable manifest" and "after line" in report["detail"]


def test_a_list_that_is_no_gzip_or_is_not_there_is_an_error(tmp_path: Path, audio: Path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="unreadable after line 0: Not a gzipped file"):
        write_manifest(LibriHeavy(cuts=(path,), audio_root=audio, out=tmp_path / "out"))
    with pytest.raises(DataError, match="none.jsonl: cannot be read: No such file"):
        write_manifest(LibriHeavy(cuts=(tmp_path / "none.jsonl",), audio_root=audio, out=tmp_path / "out"))
    with pytest.raises(DataError, match="no such folder of audio"):
        write_manifest(libriheavy(tmp_path, tmp_path / "nowhere", []))


def test_too_many_rejects_stop_the_run(tmp_path: Path, audio: Path) -> None:
    with pytest.raises(DataError, match="missing file.*--max-reject-rate"):
        write_manifest(
            libriheavy(tmp_path, audio, [published(n) for n in range(5)], strip_prefix="", max_reject_rate=0.05)
        )


def test_memory_does_not_grow_with_the_number_of_cuts(tmp_path: Path, audio: Path) -> None:
    few, many = (libriheavy(tmp_path, audio, []) for _ in range(2))
    line = json.dumps(published(1)).encode() + b"\n"
    peaks = []
    for corpus, count in ((few, 1200), (many, 4000)):
        with gzip.open(corpus.cuts[0], "wb", compresslevel=1) as file:
            for number in range(count):
                file.write(line.replace(b'64kb_1"', b'64kb_%d"' % number))
        tracemalloc.start()
        assert sum(1 for _ in corpus.rows()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000  # 3 MB of cuts more; the read buffers are in both
