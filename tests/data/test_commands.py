"""The steps one after the other, as typed: what they say at their end, and what a folder's option is called."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from megatron_most.data import commands
from megatron_most.data.commands import run_prepare_data
from megatron_most.data.dataset import load_info
from megatron_most.data.manifest import open_manifest
from megatron_most.data.unit_set import open_units
from tests.data_files import make_corpus


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(commands, "say", lambda text, *values: lines.append(text % values))
    return lines


def test_the_way_from_a_manifest_to_a_merged_dataset(
    tmp_path: Path, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path, recordings=3, cuts=8).folder
    root = {name: str(tmp_path / name) for name in ("codec", "words", "units", "set", "whole", "map.json")}
    words, units = ["--tokenizer", root["words"]], ["--manifest", str(corpus), "--units", root["units"]]
    run_prepare_data(["fit-codec", "--manifest", str(corpus), "--num-units", "8", "--out", root["codec"]])
    run_prepare_data(["fit-tokenizer", "--manifest", str(corpus), "--vocab-size", "300", "--out", root["words"]])
    run_prepare_data(["token-map", *words, "--num-units", "8", "--out", root["map.json"]])
    more = ["--codec", root["codec"], "--max-seconds", "1.8", "--max-reject-rate", "1"]
    run_prepare_data(["units", "--manifest", str(corpus), *more, "--out", root["units"]])
    build = ["build", "--task", "asr", *units, *words, "--tokens", root["map.json"], "--max-reject-rate", "1"]
    for shard in ("0/2", "1/2"):
        run_prepare_data([*build, "--out", root["set"], "--shard", shard])
    run_prepare_data(["merge", "--dataset", root["set"], "--out", root["whole"]])
    info = load_info(root["whole"])
    rows, seconds = open_manifest(corpus).header.rows, open_units(root["units"]).seconds
    left_out = rows - info.documents
    assert info.documents and left_out and info.rejects == {"no units": left_out}
    text, audio = (info.tokens_by_tag[tag] for tag in ("text", "audio"))
    counts = f"{info.documents:,} documents, {text + audio:,} tokens ({text:,} text, {audio:,} audio)"
    assert said[-1] == (
        f"{root['whole']}: 2 shards merged: {counts}, {seconds / 3600:.2f} h of asr; {left_out} rejected, listed "
        f"in {root['whole']}/rejects.jsonl ({left_out} no units)"
    )
    assert said[-2].startswith(f"{root['set']}/00001-of-00002: ") and said[-2].endswith("; shard 1 of 2")
    run_prepare_data(["verify", "--no-with-core", "--paths", root["set"], root["whole"], root["units"], str(corpus)])
    assert all(": whole; " in line for line in said[-4:])
    run_prepare_data(["stats", "--dataset", root["whole"]])
    assert f"{info.documents:,}" in capsys.readouterr().out


def test_the_card_names_options_as_the_command_line_does(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, recordings=1, cuts=4).folder
    (tmp_path / "a.jsonl").write_text('{"text": "some words"}\n{"text": "more of them"}\n')
    run_prepare_data(["manifest", "text", "--files", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "t"),
                      "--licence", "CC0-1.0", "--source", "made", "--name", "t"])  # fmt: skip
    run_prepare_data(["fit-tokenizer", "--manifest", str(corpus), "--vocab-size", "300", "--out", str(tmp_path / "w")])
    words = ["--tokenizer", str(tmp_path / "w"), "--tokens", str(tmp_path / "w" / "token_map.json")]
    run_prepare_data(["build", "--task", "text-lm", "--manifest", str(tmp_path / "t"), *words, "--out",
                      str(tmp_path / "d")])  # fmt: skip
    card = (tmp_path / "d" / "README.md").read_text()
    named = set(re.findall(r"^\| (\S+) \|", card.split("## To make it again")[1].split("## To check it")[0], re.M))
    assert named == {"--part", "--hold-out", "--hold-out-by", "--refuse-overlap", "--shard", "option", "---"}
    assert "| --shard | 0/1 |" in card and "| --refuse-overlap | no |" in card
    assert "interleave" not in card and "--units" not in card  # which have no part in it


def test_a_folder_has_one_name_over_all_steps() -> None:
    names = {field.name for step in commands._STEPS.values() for field in fields(step)}
    assert {"manifest", "units", "dataset"} <= names
    assert not names & {"manifests", "datasets", "shards", "unit_set", "set"}
    for name in ("units", "stats", "build", "fit-codec", "fit-tokenizer"):
        assert "manifest" in {field.name for field in fields(commands._STEPS[name])}


def test_a_step_that_is_done_says_so_and_what_it_made(
    tmp_path: Path, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    corpus = make_corpus(tmp_path, recordings=1, cuts=4).folder
    told = []
    for _ in range(2):
        caplog.clear()
        run_prepare_data(["fit-codec", "--manifest", str(corpus), "--num-units", "4", "--out", str(tmp_path / "c")])
        told.append(f"{tmp_path / 'c'}: already done, by the same job" in caplog.text)
    assert told == [False, True]
    assert said[0] == said[1] and "4 units" in said[0]
    assert json.loads((tmp_path / "c" / "job.json").read_text())["what"] == "codec"
