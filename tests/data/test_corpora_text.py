"""Text, dialogues and the MoST release's samples; and the options of every corpus as a command line."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from megatron_most.data.commands import run_prepare_data
from megatron_most.data.corpora import CORPORA, Chat, Release, Text, write_manifest
from megatron_most.data.corpora.common import Corpus, UnreadableFile
from megatron_most.data.corpora.json_list import read_json_list
from megatron_most.data.manifest import open_manifest
from megatron_most.data.rows import ChatRow, TextRow, Turn
from megatron_most.errors import DataError


def parquet(path: Path, columns: dict[str, Any], row_group_size: int = 2) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


def json_file(path: Path, rows: list[Any]) -> Path:
    data = b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows(folder: Path) -> list[Any]:
    return list(open_manifest(folder).rows())


def rejects(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["id"], row["reason"]) for row in map(json.loads, lines)]


def text(tmp_path: Path, *files: Path, **options: Any) -> Text:
    return Text(**{"files": files, "out": tmp_path / "out", "max_reject_rate": 1.0, **options})


def test_text_comes_from_parquet_and_json_lines_alike(tmp_path: Path) -> None:
    documents = ["First.\n\nSecond  paragraph.", "Deux é", "3", "4", "5"]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    parquet(corpus / "train-00000-of-00002.parquet", {"content": documents, "url": ["u"] * 5})
    json_file(corpus / "b.jsonl.gz", [{"text": document, "url": "u"} for document in documents])
    header = write_manifest(text(tmp_path, corpus))
    found = rows(tmp_path / "out")
    assert [row.text for row in found] == documents * 2
    assert found[0] == TextRow(id="refinedweb-b-1", text=documents[0])
    assert found[5].id == "refinedweb-train-00000-of-00002-1"
    assert (header.kind, header.licence, header.normalisation) == ("text", "ODC-By 1.0", "none")


def test_text_with_damage_is_rejected_one_by_one(tmp_path: Path) -> None:
    import pyarrow

    strings = pyarrow.array([b"good", b"caf\xe9", None, b" \n", b"<|endoftext|>"], pyarrow.binary()).view(
        pyarrow.string()
    )
    path = parquet(tmp_path / "a.parquet", {"text": strings})
    lines = json_file(
        tmp_path / "b.jsonl", [{"text": "good"}, b"{", b'{"text": "\xe9"}', {"content": "x"}, {"text": 7}]
    )
    write_manifest(text(tmp_path, path, lines))
    assert [row.text for row in rows(tmp_path / "out")] == ["good", "good"]
    assert rejects(tmp_path / "out") == [
        ("refinedweb-a-2", "invalid UTF-8"),
        ("refinedweb-a-3", "missing text"),
        ("refinedweb-a-4", "missing text"),
        ("refinedweb-a-5", "tags only"),
        ("refinedweb-b-2", "malformed JSON"),
        ("refinedweb-b-3", "invalid UTF-8"),
        ("refinedweb-b-4", "missing text"),
        ("refinedweb-b-5", "malformed row"),
    ]


def test_a_missing_column_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"body": ["x"], "url": ["u"]})
    with pytest.raises(DataError, match="a.parquet: no column content or text; the columns found are body, url"):
        write_manifest(text(tmp_path, path))
    assert write_manifest(text(tmp_path, path, column="body")).rows == 1
    lines = json_file(tmp_path / "b.jsonl", [{"body": "x"}])
    with pytest.raises(DataError, match="b.jsonl: no column messages; the columns found are body"):
        write_manifest(Chat(files=(lines,), out=tmp_path / "chat"))


def test_a_parquet_file_cut_short_stops_the_run(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": ["word " * 50] * 100}, row_group_size=10)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UnreadableFile, match="a.parquet: unreadable after row 0"):
        write_manifest(text(tmp_path, path))
    path.write_bytes(whole[:700] + bytes(300) + whole[1000:])
    with pytest.raises(UnreadableFile, match=r"a.parquet: unreadable after row \d+"):
        write_manifest(text(tmp_path, path))
    assert not (tmp_path / "out").exists()


def test_files_whose_ids_would_be_alike_are_refused(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        json_file(tmp_path / name / "a.jsonl", [{"text": name}])
    with pytest.raises(DataError, match="x/a.jsonl and .*y/a.jsonl: ids would be alike"):
        write_manifest(text(tmp_path, tmp_path / "x" / "a.jsonl", tmp_path / "y" / "a.jsonl"))
    write_manifest(text(tmp_path, tmp_path))  # below one folder their paths differ
    assert [row.id for row in rows(tmp_path / "out")] == ["refinedweb-x/a-1", "refinedweb-y/a-1"]
    with pytest.raises(DataError, match="no file ending in .parquet, .jsonl"):
        (tmp_path / "empty").mkdir()
        write_manifest(text(tmp_path, tmp_path / "empty", out=tmp_path / "again"))


def test_dialogues_become_turns(tmp_path: Path) -> None:
    def said(*pairs: tuple[str, str]) -> list[dict[str, str]]:
        return [{"content": content, "role": role} for role, content in pairs]

    messages = [
        said(("system", "Be brief."), ("user", "Hi\n\nthere"), ("assistant", "[1, 2]")),
        said(("system", ""), ("user", "a"), ("assistant", "b")),
        said(("user", "a"), ("assistant", " ")),
        said(("tool", "a")),
        [],
    ]
    path = parquet(tmp_path / "train-0.parquet", {"messages": messages, "source": ["s"] * 5})
    lines = json_file(
        tmp_path / "l.jsonl",
        [{"messages": m} for m in messages] + [{"messages": "hi"}, {"messages": [{"role": "user", "content": [1]}]}],
    )
    write_manifest(Chat(files=(path, lines), out=tmp_path / "out", max_reject_rate=1.0))
    first, second, *others = rows(tmp_path / "out")
    assert first == ChatRow(
        id="smoltalk-train-0-1",
        turns=(
            Turn(role="system", parts=("Be brief.",)),
            Turn(role="user", parts=("Hi\n\nthere",)),
            Turn(role="assistant", parts=("[1, 2]",)),
        ),
    )
    assert [turn.role for turn in second.turns] == ["user", "assistant"] and len(others) == 2
    expected = [("train-0-3", "missing text"), ("train-0-4", "malformed row"), ("train-0-5", "missing text")]
    expected += [("l-3", "missing text"), ("l-4", "malformed row"), ("l-5", "missing text")]
    expected += [("l-6", "missing text"), ("l-7", "malformed row")]
    assert rejects(tmp_path / "out") == [(f"smoltalk-{id}", reason) for id, reason in expected]


ASR, TTS = "Transcribe the following speech into text.", "Convert the following text into speech."


def record(id: str, instruction: str, input: str, output: str) -> dict[str, Any]:
    return {"id": id, "instruction": instruction, "input": input, "output": output, "metadata": {"task": "asr"}}


def release(tmp_path: Path, *files: Path, **options: Any) -> Release:
    return Release(**{"files": files, "out": tmp_path / "out", "max_reject_rate": 1.0, **options})


def as_turns(user: tuple[Any, ...], assistant: tuple[Any, ...]) -> tuple[Turn, Turn]:
    return Turn(role="user", parts=user), Turn(role="assistant", parts=assistant)


@pytest.mark.parametrize("is_object", [False, True])
def test_the_releases_samples_become_turns_of_text_and_units(tmp_path: Path, is_object: bool) -> None:
    records = [
        record("a", ASR, "[Hu7][Hu90][Hu7]", "hello there"),
        record("tts_a", TTS, "hello there", "[Hu0][Hu499]"),
        record("t", "What is two and two?", "", "Four [4]."),
        record("i", "Add.", "two and two", "four<|end_of_sentence|>"),
        record(
            "m",
            ASR,
            "<｜begin▁of▁audio｜>[Hu1][Hu2]<｜end▁of▁audio｜>",
            "<｜begin▁of▁sentence｜>hi<｜end▁of▁sentence｜>",
        ),
        record("n", ASR, "<|begin_of_audio|>[Hu3] [Hu4]\n<|end_of_audio|>", "hi"),
        record("s", "Go on: <|begin_of_audio|>[Hu5]<|end_of_audio|> and", "", "so [Hu6][Hu6] on"),
    ]
    content: Any = {"version": 1, "about": {"data": [1]}, "data": records} if is_object else records
    (tmp_path / "a_train.json").write_text(json.dumps(content, indent=2, ensure_ascii=not is_object), encoding="utf-8")
    write_manifest(release(tmp_path, tmp_path / "a_train.json"))
    assert {row.id.removeprefix("most-"): row.turns for row in rows(tmp_path / "out")} == {
        "a": as_turns((f"{ASR}\n\n", (7, 90, 7)), ("hello there",)),
        "tts_a": as_turns((f"{TTS}\n\nhello there",), ((0, 499),)),
        "t": as_turns(("What is two and two?",), ("Four [4].",)),
        "i": as_turns(("Add.\n\ntwo and two",), ("four",)),
        "m": as_turns((f"{ASR}\n\n", (1, 2)), ("hi",)),
        "n": as_turns((f"{ASR}\n\n", (3, 4)), ("hi",)),
        "s": as_turns(("Go on: ", (5,), " and"), ("so ", (6, 6), " on")),
    }


def test_release_samples_with_damage_are_rejected_one_by_one(tmp_path: Path) -> None:
    records: list[tuple[Any, str]] = [
        (record("500", ASR, "[Hu1][Hu500]", "x"), "unit outside the vocabulary"),
        (record("cut", ASR, "[Hu1][Hu2", "x"), "malformed units"),
        (record("zeros", ASR, "[Hu1][Hu02]", "x"), "malformed units"),
        (record("minus", ASR, "[Hu-1]", "x"), "malformed units"),
        (record("marks", ASR, "<|begin_of_audio|><|end_of_audio|>", "x"), "malformed units"),
        (record("open", ASR, "x <|begin_of_audio|>", "x"), "malformed units"),
        (record("half", ASR, "<|begin_of_audio|>[Hu1][Hu2]", "x"), "malformed units"),
        (record("empty", ASR, "[Hu1]", " "), "missing text"),
        (record("nothing", "", "", "x"), "missing text"),
        (record("eos", ASR, "[Hu1]", "<|end_of_sentence|>"), "missing text"),
        (record("special", ASR, "[Hu1]", "<|endoftext|>"), "tags only"),
        (record("number", ASR, "[Hu1]", 7), "malformed row"),  # type: ignore[arg-type]
        ("a string", "malformed row"),
        (record("good", ASR, "[Hu1]", "x"), "duplicate id"),
    ]
    good = record("good", ASR, "[Hu1]", "x")
    path = json_file(tmp_path / "a.json", [[good, *(row for row, _ in records)]])
    bytes_ = path.read_bytes().replace(b'"id": "500"', b'"id": "500\xff"')
    path.write_bytes(bytes_)
    header = write_manifest(release(tmp_path, path))
    expected = ["invalid UTF-8", *(reason for _, reason in records[1:])]
    assert [reason for _, reason in rejects(tmp_path / "out")] == expected
    assert header.rows == 1
    write_manifest(
        release(
            tmp_path,
            json_file(tmp_path / "b.json", [[good, record("u", ASR, "[Hu1]", "x")]]),
            num_units=2,
            out=tmp_path / "two",
        )
    )
    with pytest.raises(DataError, match="no usable row .rejected: 2 unit outside the vocabulary."):
        write_manifest(release(tmp_path, tmp_path / "b.json", num_units=1, out=tmp_path / "one"))


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "neither a list"),
        (b"7", "neither a list"),
        (b'{"rows": []}', "an object without a list under"),
        (b'{"data": 7}', "data. is no list"),
        (b'[{"a": 1} {"a": 2}]', "after item 1: .{. where a comma"),
        (b'[{"a": 1}, {"a": 2}', "after item 2: the file ends in the list"),
        (b'[{"a": 1}, {"a', "after item 1: Unterminated string"),
        (b'[{"a": 1}, {a: 2}]', "after item 1: Expecting property name"),
        (b"[1, 2,]", "after item 2: Expecting value"),
        (b"[" + b"[" * 100_000, "after item 0: nested too deeply"),
    ],
)
def test_damage_inside_a_json_list_stops_with_the_item_reached(tmp_path: Path, content: bytes, wrong: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UnreadableFile, match=wrong):
        list(read_json_list(tmp_path / "a.json"))


def test_a_json_list_is_read_alike_in_chunks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"é": '[{\\"' + "x" * n, "n": [n, 1.5e-3, None]} for n in range(20)] + [12345, -1.25, "tail", []]
    for content in (json.dumps(items), " \n" + json.dumps({"b": [1], "data": items}, indent=1), "\ufeff[ ]"):
        (tmp_path / "a.json").write_text(content, encoding="utf-8")
        expected = [] if content.startswith("\ufeff") else items
        for size in (1, 2, 3, 7, 64, 1 << 20):
            monkeypatch.setattr("megatron_most.data.corpora.json_list._CHUNK", size)
            assert list(read_json_list(tmp_path / "a.json")) == expected


def test_a_json_list_larger_than_the_memory_it_takes(tmp_path: Path) -> None:
    unit = json.dumps(record("x", ASR, "[Hu12]" * 500, "hello " * 50)).encode()
    with gzip.open(tmp_path / "a.json.gz", "wb", compresslevel=1) as file:
        file.write(b"[" + b",\n".join([unit] * 12_000) + b"]")  # 42 MB
    tracemalloc.start()
    count = sum(1 for _ in read_json_list(tmp_path / "a.json.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 12_000 and peak < 12_000_000


COMMANDS: dict[str, list[str]] = {
    "libriheavy": ["--cuts", "a.jsonl.gz", "b.jsonl.gz", "--audio-root", "audio", "--text", "plain"],
    "librispeech": ["--root", "r", "--parts", "dev-clean", "test-clean"],
    "commonvoice": ["--root", "r", "--language", "cy", "--no-speaker-disjoint"],
    "voxpopuli": ["--root", "r", "--language", "en", "--layout", "raw"],
    "cuts": ["--name", "n", "--cuts", "a.jsonl", "--audio-root", "audio", "--no-needs-text"],
    "jsonl": ["--name", "n", "--files", "a.jsonl", "--audio-root", "audio"],
    "kaldi": ["--name", "n", "--folder", "f"],
    "folder": ["--name", "n", "--root", "r", "--suffixes", ".wav", ".flac"],
    "text": ["--files", "a.parquet", "--column", "content"],
    "chat": ["--files", "a.parquet"],
    "release": ["--files", "a.json", "--num-units", "100"],
}


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_is_a_subcommand_with_its_options_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import tyro

    corpus = tyro.extras.subcommand_cli_from_dict(CORPORA, args=[name, "--out", "o", *COMMANDS[name]])
    assert isinstance(corpus, CORPORA[name]) and isinstance(corpus, Corpus)
    assert corpus.out == Path("o") and all(corpus.terms) and corpus.corpus
    with pytest.raises(SystemExit):
        tyro.extras.subcommand_cli_from_dict(CORPORA, args=[name, "--help"])
    help = capsys.readouterr().out
    for option in (word for word in COMMANDS[name] if word.startswith("--")):
        assert option in help
    assert "Share of items that may be rejected" in help
    assert name != "commonvoice" or "Language code as the release spells it" in " ".join(help.split())


@pytest.mark.parametrize(("kind", "known"), [("text", "refinedweb"), ("chat", "smoltalk")])
def test_another_corpus_does_not_get_the_licence_of_the_known_one(tmp_path: Path, kind: str, known: str) -> None:
    row = {"text": "a text", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    words = ["manifest", kind, "--files", str(tmp_path / "a.jsonl")]
    licence, source = ["--licence", "CC0-1.0"], ["--source", "my own"]
    for given, missing in (([], "--licence and --source"), (licence, "--source"), (source, "--licence")):
        with pytest.raises(DataError, match=f"^--name mine: {missing} not given.* of {known}; give mine's own"):
            run_prepare_data([*words, "--name", "mine", *given, "--out", str(tmp_path / "m")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    run_prepare_data([*words, "--name", "mine", *licence, *source, "--out", str(tmp_path / "m")])
    run_prepare_data([*words, "--out", str(tmp_path / "k")])
    mine, theirs = (open_manifest(tmp_path / name).header for name in "mk")
    assert (mine.corpus, mine.licence, mine.source) == ("mine", "CC0-1.0", "my own")
    assert theirs.corpus == known and theirs.licence and known in theirs.source.lower()
