"""What lies beside a run on its page: word errors of samples over training, evaluations as a table, sounds."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from megatron_most.errors import DataError
from megatron_most.report import run_report
from megatron_most.report.beside import MOST_BYTES, read_bars, read_figures, read_sound, sample_errors
from tests.pages import HOSTILE, Seen, require_nothing_loaded

WAVE = b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
WAVE += b"data" + struct.pack("<I", 0)


def sample(step: int, said: str, meant: str, task: str = "asr") -> dict[str, Any]:
    return {"step": step, "task": task, "document": "d", "prompt": "p", "answer": said, "reference": meant}


def a_run(folder: Path, samples: list[Any]) -> Path:
    folder.mkdir(parents=True)
    line = {"step": 0, "loss": 1.0, "seconds": 0.5, "tokens": 5, "skipped": False}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    return folder


def a_result(folder: Path, task: str = "asr/animals/test", **changes: Any) -> Path:
    folder.mkdir(parents=True)
    score = {"measures": "m", "value": 0.125, "low": 0.1, "high": 0.15, "items": 1200, "total": 9.0}
    result = {"task": task, "scores": {"wer": score, "nll": score}, "parts": {"wer": {"real": score}}, **changes}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_word_errors_are_of_all_words_of_a_step_and_only_where_words_are_the_answer(tmp_path: Path) -> None:
    samples = [sample(0, "", "two red cats"), sample(0, "five dogs", "five dogs")]
    samples += [sample(9, "two red dogs", "two red cats"), sample(9, "x", " ")]
    samples += [sample(9, "[Hu1]", "[Hu1][Hu2]", "tts"), sample(9, "[Hu1]", "[Hu1][Hu2]")]
    [(task, series)] = sample_errors(a_run(tmp_path / "run", samples))
    assert task == "asr" and series.steps.tolist() == [0, 9]
    assert series.values.tolist() == pytest.approx([3 / 5, 1 / 3])


def test_a_damaged_line_of_samples_counts_for_nothing(tmp_path: Path) -> None:
    samples = [sample(0, "a", "a b"), {"step": "x", "task": "asr"}, 7, sample(0, "b", "b")]
    [(_, series)] = sample_errors(a_run(tmp_path / "run", samples))
    assert series.values.tolist() == pytest.approx([1 / 3])
    (tmp_path / "bare").mkdir()
    assert sample_errors(tmp_path / "bare") == []


def test_the_page_has_the_curve_the_table_and_the_players(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [sample(0, "a", "a b"), sample(4, "a b", "a b")])
    a_result(tmp_path / "evaluation" / "asr", task=HOSTILE)
    (tmp_path / "one.wav").write_bytes(WAVE)
    out = tmp_path / "page.html"
    words = ["--evaluation", str(tmp_path / "evaluation"), "--sound", f"{HOSTILE.replace('=', '')}={tmp_path}/one.wav"]
    run_report([str(run), *words, "--out", str(out)])
    page = out.read_text(encoding="utf-8")
    require_nothing_loaded(page)
    seen = Seen(page)
    assert "Word errors" in seen.texts and "To be heard" in seen.texts
    at = seen.texts.index("12.5 %")
    assert seen.texts[at - 1 : at + 3] == ["wer", "12.5 %", "10.0 % to 15.0 %", "1,200"]
    assert {"0.125", "wer, real"} <= set(seen.texts)  # nats are no share
    [source] = [value for tag, name, value in seen.attributes if tag == "audio" and name == "src"]
    assert base64.b64decode(source.partition(",")[2]) == WAVE


def test_what_cannot_be_shown_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no wave")
    (tmp_path / "long.wav").write_bytes(WAVE + bytes(MOST_BYTES))
    for words, wrong in [
        ("one.wav", "write LABEL=FILE"), (f"a={tmp_path}/gone.wav", "give a WAV file"),
        (f"a={tmp_path}/text.wav", "not a WAV file"), (f"a={tmp_path}/long.wav", "at most 2,097,152"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=wrong):
            read_sound(words)
    with pytest.raises(DataError, match="holds no result.json; give the folder of an evaluation"):
        read_figures([tmp_path])
    with pytest.raises(DataError, match="cannot be read as a result"):
        read_figures([a_result(tmp_path / "odd", scores={"wer": 3})])


def an_ablation(path: Path, names: list[str]) -> Path:
    results = [
        {"name": name, "seed": seed, "total": 9, "active": 5, "losses": {"asr": 1.0 + at + seed, "tts": 2.5}}
        for at, name in enumerate(names)
        for seed in (0, 1)
    ]
    path.write_text(json.dumps(results))
    return path


def test_an_ablation_is_a_bar_a_variant_for_each_task(tmp_path: Path) -> None:
    path = an_ablation(tmp_path / "results.json", ["MAMoE", "dense", HOSTILE])
    asr, tts = read_bars(path)
    assert (asr.task, tts.task) == ("asr", "tts") and asr.losses["dense"] == [2.0, 3.0]
    run = a_run(tmp_path / "run", [])
    run_report([str(run), "--ablation", str(path), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    require_nothing_loaded(text)
    assert text.count("Ablation: ") == 2 and text.count(">MAMoE<") == 2 and text.count(">dense<") == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"name": "x"}]', '[{"name": "x", "losses": {"asr": "much"}}]'])
def test_what_is_no_ablation_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"cannot be read as an ablation .*bench/ablation.py"):
        read_bars(path)
