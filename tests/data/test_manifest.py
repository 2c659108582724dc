"""Manifests: checked rows behind a header; bad rows are counted, not fatal; a damaged file is refused."""

from __future__ import annotations

import copy
import gzip
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_most.data.manifest import HEADER, ROWS, open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.rejects import Rejects, told
from megatron_most.data.rows import ChatRow, SpeechPart, Turn, Utterance, Word
from megatron_most.data.seal import SEAL, sealed
from megatron_most.errors import DataError


def cut(id: str = "c-1", **changes: Any) -> dict[str, Any]:
    made = {
        "id": id,
        "start": 1.5,
        "duration": 2.0,
        "channel": 0,
        "supervisions": [
            {
                "id": id,
                "recording_id": "r",
                "start": 0,
                "duration": 2.0,
                "channel": 0,
                "text": "Hello there.",
                "language": "en",
                "speaker": "librivox-7",
                "alignment": {"word": [["Hello", 0.1, 0.4], ["there.", 0.6, 0.5]]},
            }
        ],
        "recording": {
            "id": "r",
            "sources": [{"type": "file", "channels": [0], "source": "a/b.flac"}],
            "sampling_rate": 16000,
            "num_samples": 160000,
            "duration": 10.0,
        },
        "type": "MonoCut",
    }
    return {**made, **changes}


def writer(folder: Path, kind: Any = "speech", **changes: Any) -> ManifestWriter:
    about: dict[str, Any] = dict(corpus="test", split="train", licence="CC0-1.0", source="made", normalisation="none")
    return ManifestWriter(folder, kind=kind, **{**about, **changes})


def rejected(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def test_a_speech_row_comes_back_as_it_went_in_and_lhotse_opens_the_file(tmp_path: Path) -> None:
    with writer(tmp_path / "m", audio_root="audio") as out:
        out.add_cut(cut())
        out.add_cut(cut("c-2", start=0, duration=10))
    manifest = open_manifest(tmp_path / "m")
    assert (manifest.header.rows, manifest.header.seconds, manifest.header.rejects) == (2, 12.0, {})
    assert manifest.audio_root == (tmp_path / "m" / "audio").resolve()
    first, second = manifest.rows()
    assert first == Utterance(
        id="c-1",
        audio="a/b.flac",
        start=1.5,
        duration=2.0,
        channel=0,
        recording="r",
        sampling_rate=16000,
        text="Hello there.",
        speaker="librivox-7",
        language="en",
        words=(Word(text="Hello", start=0.1, duration=0.4), Word(text="there.", start=0.6, duration=0.5)),
    )
    assert isinstance(second, Utterance) and second.duration == 10
    from lhotse import CutSet

    cuts = list(CutSet.from_file(tmp_path / "m" / ROWS))
    assert [(c.id, c.start, c.duration, c.supervisions[0].text) for c in cuts][0] == ("c-1", 1.5, 2.0, "Hello there.")


def test_text_and_chat_rows_come_back(tmp_path: Path) -> None:
    chat = ChatRow(
        id="x",
        turns=(Turn(role="user", parts=("Say it", (3, 4, 4))), Turn(role="assistant", parts=(SpeechPart("u-1"),))),
    )
    with writer(tmp_path / "chat", kind="chat") as out:
        out.add_chat(chat)
    with writer(tmp_path / "text", kind="text") as out:
        out.add_text("t", "Grüße, 世界\n")
    assert list(open_manifest(tmp_path / "chat").rows()) == [chat]
    assert [row.text for row in open_manifest(tmp_path / "text").rows()] == ["Grüße, 世界\n"]  # type: ignore[union-attr]


def test_equal_rows_make_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with writer(tmp_path / name) as out:
            for number in range(50):
                out.add_cut(cut(f"c-{number}"))
    assert (tmp_path / "a" / ROWS).read_bytes() == (tmp_path / "b" / ROWS).read_bytes()


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(row: dict[str, Any]) -> None:
        *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        for step in way:
            row = row[step]
        row[last] = value

    return apply


BAD = [
    ("duration", 0, "zero length"),
    ("duration", -1.0, "zero length"),
    ("duration", 9.0, "beyond the end"),
    ("start", -0.5, "beyond the end"),
    ("start", float("nan"), "malformed row"),
    ("duration", "2", "malformed row"),
    ("duration", True, "malformed row"),
    ("id", "", "malformed row"),
    ("id", "two\nlines", "malformed row"),
    ("type", "MixedCut", "not a MonoCut"),
    ("recording", None, "malformed row"),
    ("recording.sources", [], "malformed row"),
    ("recording.sources.0.type", "command", "source type not allowed"),
    ("recording.sources.0.type", "url", "source type not allowed"),
    ("recording.sources.0.type", "memory", "source type not allowed"),
    ("recording.sources.0.source", "/etc/passwd", "outside the data root"),
    ("recording.sources.0.source", "a/../../b.wav", "outside the data root"),
    ("recording.sources.0.source", "a\0b.wav", "malformed row"),
    ("recording.sampling_rate", 0, "malformed row"),
    ("channel", "left", "malformed row"),
    ("supervisions", [{}, {}], "malformed row"),
    ("supervisions.0.text", 5, "malformed row"),
    ("supervisions.0.text", "half \ud800", "invalid UTF-8"),
    ("supervisions.0.alignment", {"word": [["a", 0.0]]}, "bad word times"),
]


@pytest.mark.parametrize(("path", "value", "reason"), BAD, ids=[f"{p}-{v!r}" for p, v, _ in BAD])
def test_a_bad_cut_is_set_aside_with_its_reason_and_the_run_goes_on(
    tmp_path: Path, path: str, value: Any, reason: str
) -> None:
    bad = copy.deepcopy(cut("bad"))
    change(path, value)(bad)
    with writer(tmp_path / "m", max_reject_rate=0.5) as out:
        out.add_cut(cut("good"))
        out.add_cut(bad)
    assert [row.id for row in open_manifest(tmp_path / "m").rows()] == ["good"]
    assert [entry["reason"] for entry in rejected(tmp_path / "m")] == [reason]
    assert open_manifest(tmp_path / "m").header.rejects == {reason: 1}


def test_an_id_is_taken_once(tmp_path: Path) -> None:
    with writer(tmp_path / "m", max_reject_rate=0.5) as out:
        for start in (0, 1):
            out.add_cut(cut("same", start=start))
        out.add_cut(cut("other"))
    rows = list(open_manifest(tmp_path / "m").rows())
    assert [(row.id, getattr(row, "start", None)) for row in rows] == [("same", 0), ("other", 1.5)]
    assert rejected(tmp_path / "m") == [{"id": "same", "reason": "duplicate id", "detail": ""}]


def test_too_many_bad_rows_stop_the_run_and_leave_only_their_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1000 of 1000 rows rejected \(1000 zero length\)") as caught:
        with writer(tmp_path / "m") as out:
            for number in range(5000):
                out.add_cut(cut(f"c-{number}", duration=0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.rejects.jsonl"]
    told = (
        f"the first 'zero length' is c-0: duration 0 s; look at {tmp_path}/m.rejects.jsonl, or raise --max-reject-rate"
    )
    assert str(caught.value).endswith(told)


def test_a_step_says_last_how_many_rows_it_left_out_and_where_they_stand() -> None:
    assert told({}, "m/rejects.jsonl") == "0 rejected"
    assert told({"zero length": 2, "missing text": 1}, "m/rejects.jsonl") == "3 rejected, listed in m/rejects.jsonl"
    by_choice = {"overlaps gsm8k": 4, "speaker in an evaluation split": 1}
    assert told(by_choice, "r") == "0 rejected, 5 left out by choice, listed in r"


def test_a_share_that_is_none_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--max-reject-rate 5: not a share"), writer(tmp_path / "m", max_reject_rate=5):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writer(tmp_path / "m") as out:
        out.add_cut(cut())
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_the_rate_is_judged_at_the_end_too_and_allows_what_it_says() -> None:
    rejects = Rejects(lambda line: None, 0.5)
    rejects.add("a", "x")
    rejects.check(1)  # too early to judge
    with pytest.raises(DataError, match="1 of 1 rows"):
        rejects.check(1, at_end=True)
    rejects.check(2, at_end=True)


def test_rows_changed_behind_the_header_are_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "m") as out:
        out.add_cut(cut())
    open_manifest(tmp_path / "m").verify()
    with gzip.open(tmp_path / "m" / ROWS, "ab") as file:
        file.write(b"{}\n")
    with pytest.raises(DataError, match="changed since the manifest was made"):
        open_manifest(tmp_path / "m").verify()


def test_a_cut_gzip_is_refused_where_it_ends(tmp_path: Path) -> None:
    with writer(tmp_path / "m") as out:
        for number in range(2000):
            out.add_cut(cut(f"c-{number}"))
    path = tmp_path / "m" / ROWS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="rows.jsonl.gz: cannot be read: "):
        list(open_manifest(tmp_path / "m").rows())


@pytest.mark.parametrize(
    ("harm", "wrong"),
    [
        (lambda head: {**head, "format": "other"}, "not a manifest of format"),
        (lambda head: {**head, "extra": 1}, "unknown field 'extra'"),
        (lambda head: {**head, "kind": "film"}, "wrong type or value"),
        (lambda head: {**head, "rows": "2"}, "not counts"),
        (lambda head: {k: v for k, v in head.items() if k != "licence"}, "missing 1 required"),
        (lambda head: {**head, "files": {}}, "not rows.jsonl.gz, rejects.jsonl"),
        (lambda head: {**head, "files": {"rows.jsonl.gz": 3}}, "make the manifest again"),
        (lambda head: [head], "not a manifest of format"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, harm: Callable[[Any], Any], wrong: str) -> None:
    with writer(tmp_path / "m") as out:
        out.add_cut(cut())
    path = tmp_path / "m" / HEADER
    head = json.loads(path.read_text())
    harmed = harm({name: value for name, value in head.items() if name != SEAL})
    path.write_text(sealed(harmed) if isinstance(harmed, dict) else json.dumps(harmed))
    with pytest.raises(DataError, match=wrong):
        open_manifest(tmp_path / "m")


def test_a_full_disk_is_one_clear_error_with_nothing_left(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            with writer(tmp_path / "m") as out:
                for number in range(100_000):
                    out.add_cut(cut(f"c-{number}-{os.urandom(8).hex()}"))
        except DataError as error:
            os._exit(3 if "cannot be written" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert not (tmp_path / "m").exists() and not (tmp_path / "m.part").exists()


def test_two_writers_of_one_manifest_never_mix(tmp_path: Path) -> None:
    with writer(tmp_path / "m") as first:
        first.add_cut(cut())
        with pytest.raises(DataError, match="is writing here"), writer(tmp_path / "m") as second:
            second.add_cut(cut("other"))
        first.add_cut(cut("c-2"))
    manifest = open_manifest(tmp_path / "m")
    manifest.verify()
    assert [row.id for row in manifest.rows()] == ["c-1", "c-2"]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "manifest.json",
        "rejects.jsonl",
        "rows.jsonl.gz",
    ]


def test_a_bad_supervision_takes_no_other_of_its_cut_with_it(tmp_path: Path) -> None:
    from megatron_most.data.corpora import Cuts, write_manifest

    said = cut()["supervisions"][0]
    given = [{**said, "id": "s-0", "duration": 0.5}, {**said, "id": "s-1", "text": ""}]
    given += [{**said, "id": "s-2", "start": 1.0, "duration": 90}, {**said, "id": "s-3", "start": 1.0, "duration": 0.5}]
    whole = cut(supervisions=[{**one, "alignment": None} for one in given])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.flac").write_bytes(b"x")
    (tmp_path / "cuts.jsonl").write_text(json.dumps(whole) + "\n")
    corpus = Cuts(
        name="n", cuts=(tmp_path / "cuts.jsonl",), audio_root=tmp_path, out=tmp_path / "m", max_reject_rate=0.5
    )
    write_manifest(corpus)
    assert [row.id for row in open_manifest(tmp_path / "m").rows()] == ["n-s-0", "n-s-3"]
    assert [(entry["id"], entry["reason"]) for entry in rejected(tmp_path / "m")] == [
        ("s-1", "missing text"),
        ("s-2", "beyond the end"),
    ]
