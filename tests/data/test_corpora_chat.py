"""Dialogues with speech in them: parts as chat services spell them, from the list to the trained-on tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_most.data.commands import run_prepare_data
from megatron_most.data.corpora import Chat, write_manifest
from megatron_most.data.dataset import open_dataset
from megatron_most.data.manifest import open_manifest
from megatron_most.data.rows import ChatRow, SpeechPart
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.data.unit_set import open_units
from megatron_most.vocab import AUDIO
from tests.data_files import make_codec, make_corpus, make_tokenizer

OWN = {"licence": "CC0-1.0", "source": "made"}
HEARD, WRITTEN = {"speech": "r0-c0"}, {"units": [3, 4, 4]}


def listed(folder: Path, dialogues: list[Any]) -> Path:
    path = folder / "talk.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in dialogues), encoding="utf-8")
    return path


def said(content: Any, answer: Any = "yes") -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def read(folder: Path, *files: Path, **options: Any) -> tuple[list[ChatRow], list[tuple[str, str, str]]]:
    write_manifest(Chat(files=files, out=folder / "out", name="own", **OWN, max_reject_rate=1.0, **options))
    rows = [row for row in open_manifest(folder / "out").rows() if isinstance(row, ChatRow)]
    lines = (folder / "out" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return rows, [(entry["id"], entry["reason"], entry["detail"]) for entry in map(json.loads, lines)]


GOOD: list[tuple[Any, tuple[Any, ...]]] = [
    ([{"type": "text", "text": "Hi"}], ("Hi",)),
    ([{"type": "text", "text": "Hi"}, {"type": "text", "text": " there\n"}], ("Hi", " there\n")),
    (["Listen:\n", HEARD, {"text": "\n"}, WRITTEN], ("Listen:\n", SpeechPart("r0-c0"), "\n", (3, 4, 4))),
    ([{"type": "speech", "speech": "r0-c0"}], (SpeechPart("r0-c0"),)),
    ([{"type": "units", "units": [0, 15]}, ""], ((0, 15),)),
    ([{"type": "text", "text": "Hi", "speech": None, "units": None}], ("Hi",)),  # as parquet fills a part up
]
BAD: list[tuple[Any, str, str]] = [
    ([{"type": "input_audio", "input_audio": {"data": "UklGR"}}], "malformed row", "part 1: {'type': 'input_audio'"),
    (["a", {"type": "image_url", "image_url": "x"}], "malformed row", "part 2: {'type': 'image_url'"),
    ([{"type": "text", "speech": "r0-c0"}], "malformed row", "part 1: {'type': 'text', 'speech': 'r0-c0'}; a part is"),
    ([{"speech": "a", "units": [1]}], "malformed row", "part 1: {'speech': 'a', 'units': [1]}; a part is"),
    ([{"type": "text"}], "malformed row", "part 1: {'type': 'text'}; a part is"),
    ([{"text": 7}], "malformed row", "part 1: text = 7; a part is"),
    ([{"speech": ""}], "malformed row", "part 1: speech = ''; a part is"),
    ([{"speech": ["a"]}], "malformed row", "part 1: speech = ['a']; a part is"),
    ([{"units": []}], "malformed row", "part 1: units = []; a part is"),
    ([{"units": [1, -1]}], "malformed row", "part 1: units = [1, -1]; a part is"),
    ([{"units": [1, True]}], "malformed row", "part 1: units = [1, True]; a part is"),
    ([{"units": "[Hu1]"}], "malformed row", "part 1: units = '[Hu1]'; a part is"),
    ([{"units": [1, 16]}], "unit outside the vocabulary", "part 1: unit 16 of 16 (--num-units)"),
    ([[1, 2]], "malformed row", "part 1: [1, 2]; a part is"),
    ([None], "malformed row", "part 1: None; a part is"),
    ([], "missing text", ""),
    ([{"text": " "}, "\n"], "missing text", ""),
    ([{"text": "<|endo"}, "ftext|>"], "tags only", "<|endoftext|>"),
    ({"text": "a"}, "malformed row", "the text is a dict"),
    (["half \ud800", HEARD], "invalid UTF-8", "half a character at 5"),
]


def test_parts_of_every_kind_are_kept_in_order_on_either_side(tmp_path: Path) -> None:
    path = listed(tmp_path, [said(content) for content, _ in GOOD] + [said("ask", content) for content, _ in GOOD])
    rows, rejects = read(tmp_path, path, num_units=16)
    assert not rejects
    wanted = [parts for _, parts in GOOD]
    assert [row.turns[0].parts for row in rows] == wanted + [("ask",)] * len(GOOD)
    assert [row.turns[1].parts for row in rows] == [("yes",)] * len(GOOD) + wanted


def test_an_answer_marked_as_interrupted_is_kept_and_not_learnt(tmp_path: Path) -> None:
    marks = [True, False, None, 1]
    dialogues = [[*said("Hi"), *said("Stop.")] for _ in marks]
    for messages, mark in zip(dialogues, marks, strict=True):
        messages[1]["interrupted"] = mark
    rows, rejects = read(tmp_path, listed(tmp_path, dialogues))
    assert [[turn.is_trained for turn in row.turns] for row in rows] == [
        [True, False, True, True],
        [True] * 4,
        [True] * 4,
    ]
    assert rejects == [("own-talk-4", "malformed row", "message 2: interrupted = 1; it is true or false")]


def test_whatever_else_a_part_may_be_is_a_reject_with_row_message_and_part(tmp_path: Path) -> None:
    rows, rejects = read(tmp_path, listed(tmp_path, [said("good"), *(said(bad) for bad, *_ in BAD)]), num_units=16)
    assert [row.turns[0].parts for row in rows] == [("good",)]
    for number, (reject, (_, reason, detail)) in enumerate(zip(rejects, BAD, strict=True), 2):
        assert reject[:2] == (f"own-talk-{number}", reason)
        where = "" if reason == "invalid UTF-8" else "message 1: " if detail else "message 1"
        assert reject[2].startswith(where + detail)


def test_parquet_gives_the_rows_that_json_lines_give(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    contents = [content for content, _ in GOOD if all(isinstance(part, dict) for part in content)]
    dialogues = [said(content, [{"type": "text", "text": "yes"}]) for content in contents]
    pyarrow.parquet.write_table(pyarrow.table({"messages": dialogues}), tmp_path / "talk.parquet")
    (tmp_path / "lines").mkdir()
    ours, none = read(tmp_path, tmp_path / "talk.parquet")
    assert len(ours) == 4 and not none
    assert ours == read(tmp_path / "lines", listed(tmp_path, dialogues))[0]


def test_speech_spoken_and_written_reaches_the_trained_on_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    speech = make_corpus(tmp_path / "corpus", recordings=2, cuts=4)
    make_codec(tmp_path / "codec")
    tokens = make_tokenizer(tmp_path / "tokenizer")
    talks = [
        said(["Say it again: ", HEARD], [{"speech": "r1-c3"}]),
        said([{"type": "text", "text": "the quick fox"}], [WRITTEN, {"type": "text", "text": "over"}]),
        said([{"speech": "nobody"}]),
        said([{"type": "text", "text": "the fox"}], [{"type": "text", "text": "the owl"}]),
    ]
    talk, units = str(listed(tmp_path, talks)), str(tmp_path / "units")
    names = ("--tokenizer", str(tmp_path / "tokenizer"), "--tokens", str(tmp_path / "tokenizer" / "token_map.json"))
    chats = ("--manifest", str(tmp_path / "chats"), "--max-reject-rate", "1", *names)
    run_prepare_data(["units", "--manifest", str(speech.folder), "--codec", str(tmp_path / "codec"), "--out", units])
    run_prepare_data(["manifest", "chat", "--files", talk, "--num-units", "16", "--out", str(tmp_path / "chats")])
    for task in ("speech-instruct", "text-instruct"):
        run_prepare_data(["build", "--task", task, "--units", units, *chats, "--out", str(tmp_path / task)])
    found = open_units(tmp_path / "units")
    asked, answered = ([*found.by_id(id).units] for id in ("r0-c0", "r1-c3"))
    given = WRITTEN["units"]

    _, spoken = open_dataset(tmp_path / "speech-instruct")
    assert len(spoken) == 2
    for document, units_of, trained_units in ((0, asked + answered, answered), (1, given, given)):
        one = spoken.document(document)
        heard = [int(id) - tokens.first_unit_id for id in one.ids[one.tags == AUDIO]]
        assert [unit for unit in heard if 0 <= unit < 16] == units_of
        learnt = [int(id) for id in one.ids[one.is_trained]]
        inside = learnt[learnt.index(tokens.begin_audio_id) + 1 : learnt.index(tokens.end_audio_id)]
        assert [id - tokens.first_unit_id for id in inside] == trained_units
    [over] = load_tokenizer(tmp_path / "tokenizer").encode_batch(["over"])
    assert learnt[-1 - len(over) :] == [*over.tolist(), tokens.eos_id]

    _, text = open_dataset(tmp_path / "text-instruct")
    assert len(text) == 1 and not (text.document(0).tags == AUDIO).any()
    lines = (tmp_path / "speech-instruct" / "rejects.jsonl").read_text().splitlines()
    assert {entry["id"]: entry["reason"] for entry in map(json.loads, lines)} == {
        "smoltalk-talk-3": "no units",
        "smoltalk-talk-4": "no speech",
    }
    assert f"2 rejected, listed in {tmp_path}/speech-instruct/rejects.jsonl" in caplog.text
