"""Tables: our results find their lines, published numbers are as published, and pages hold whatever names there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_most.errors import DataError
from megatron_most.evaluate import Result, as_markdown, make_table, read_result, read_runs, run_evaluate, write_table
from megatron_most.evaluate.published import ROWS
from megatron_most.score import Score


def result(
    task: str,
    model: str = "a" * 64,
    left_out: dict[str, int] | None = None,
    language: str | None = None,
    **values: float,
) -> Result:
    scores = {
        name: Score(measures="x", value=value, low=value - 0.01, high=value + 0.01, items=10, total=100.0)
        for name, value in values.items()
    }
    return Result(
        task=task, is_whole=not left_out, scores=scores, items=10, left_out=left_out or {},
        model={"hash": model, "folder": "models/<b>x</b>"}, data={"language": language}, config={}, seeds={},
        bootstrap={}, speed={}, ranks=1, versions={},
    )  # fmt: skip


def keep(folder: Path, *results: Result) -> Path:
    for one in results:
        place = folder / one.task.replace("/", "-")
        place.mkdir(parents=True)
        (place / "result.json").write_text(one.to_json())
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    first = keep(
        tmp_path / "first",
        result("asr/librispeech/test-clean", wer=0.0312, cer=0.01),
        result("asr/librispeech/test-other", wer=0.07, left_out={"too long": 2}),
        result("asr/librispeech/dev-clean", wer=0.01),
        result("swuggy/dev", accuracy=0.7),
        result("qa-s2s/Llama-Questions", exist_match=0.5, exact_match=0.1),
        result("nll/asr/valid", nll=1.25, perplexity=3.49),
    )
    second = keep(tmp_path / "second", result("asr/librispeech/test-clean", "b" * 64, wer=0.0250))
    return [first, second]


def cells(markdown: str, label: str) -> list[str]:
    [line] = [line for line in markdown.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_our_numbers_stand_beside_the_papers_and_its_peers(runs):
    found = as_markdown(make_table(read_runs(runs)))
    asr = found[: found.index("### TTS")]
    assert cells(asr, "LibriSpeech test-clean") == ["3.12 (2.12 to 4.12)", "**2.50** (1.50 to 3.50)", "2.0", "1.8"]
    assert cells(asr, "LibriSpeech test-other") == ["7.00* (6.00 to 8.00)", "–", "3.7", "3.6"]
    assert cells(found, "sWUGGY") == ["70.00 (69.00 to 71.00)", "–", "75.28", "–"]
    speech = found[found.index("answers in speech") :]
    assert cells(speech, "Llama-Questions") == ["50.00 (49.00 to 51.00)", "–", "62.6", "–"]
    assert cells(found, "nll/asr/valid: perplexity") == ["3.4900 (3.4800 to 3.5000)", "–", "–", "–"]
    assert "models/&lt;b&gt;x&lt;/b&gt;" in found
    assert "first, asr/librispeech/test-other: 10 items, 2 too long" in found


def test_a_number_of_some_items_or_of_a_judge_of_its_own_is_marked(tmp_path):
    short = result("asr/librispeech/test-clean", wer=0.03)
    short.data["limit"] = 5
    heard = [result("tts/librispeech/test-clean", wer=0.05), result("tts/librispeech/test-other", wer=0.06)]
    heard[0].config["judge"] = {"name": "pocketsphinx", "model": "en-us, 27 words", "hash": "x"}
    heard[1].config["judge"] = {"name": "whisper", "model": "large-v3", "hash": "x"}
    table = make_table(read_runs([keep(tmp_path / "run", short, *heard)]))
    found = as_markdown(table)
    asr, tts = found[: found.index("### TTS")], found[found.index("### TTS") :]
    assert cells(asr, "LibriSpeech test-clean")[0] == "3.00* (2.00 to 4.00)"
    assert cells(tts, "LibriSpeech test-clean")[0].startswith("5.00*")
    assert cells(tts, "LibriSpeech test-other")[0].startswith("6.00 (")
    assert "test-clean: 10 items, the first 5 alone (--limit)" in found
    assert "test-clean: 10 items, heard by pocketsphinx (en-us, 27 words)" in found
    write_table(table, tmp_path / "table.html")
    assert "the first 5 alone" in (tmp_path / "table.html").read_text()


def test_a_number_of_another_language_does_not_stand_beside_the_papers(tmp_path):
    german = keep(tmp_path / "german", result("asr/voxpopuli/test", language="de", wer=0.5))
    english = keep(tmp_path / "english", result("asr/voxpopuli/test", language="en_GB", wer=0.25))
    found = as_markdown(make_table(read_runs([german, english])))
    asr = found[: found.index("### TTS")]
    assert cells(asr, "VoxPopuli") == ["–", "25.00 (24.00 to 26.00)", "6.2", "–"]
    assert cells(found, "asr/voxpopuli/test (de): wer") == ["50.00 (49.00 to 51.00)", "–", "–", "–"]


def test_published_numbers_are_as_published():
    paper = {(row.section, row.label): row.known.get("MoST (paper)") for row in ROWS}
    of = {section: [value for (where, _), value in paper.items() if where == section] for section, _ in paper}
    assert of["ASR, WER"] == [2.0, 3.7, 6.2, 8.4]
    assert of["TTS, WER of a judge"] == [6.0, 7.2, 10.1, 11.5]
    assert of["Spoken language modelling, accuracy"] == [75.28, 63.42, 83.64, 65.43]
    assert of["Spoken questions, answers in text"] == [74.8, 43.5, 58.2]
    assert of["Spoken questions, answers in speech"] == [62.6, 32.1, 44.7]
    peers = [row.known.get("Qwen2-Audio") for row in ROWS if row.section == "ASR, WER"]
    assert peers == [1.8, 3.6, None, None]


def test_a_page_and_markdown_are_written_and_the_page_loads_nothing(runs, tmp_path, capsys):
    out = [tmp_path / "t.md", tmp_path / "t.html"]
    run_evaluate(["table", *map(str, runs), "--out", *map(str, out)])
    page = out[1].read_text()
    assert "3.12" in page and "75.28" in page and "&lt;b&gt;x&lt;/b&gt;" in page and "<b>x</b>" not in page
    assert "://" not in page and "default-src 'none'" in page
    run_evaluate(["table", *map(str, runs)])
    assert capsys.readouterr().out == out[0].read_text()
    with pytest.raises(DataError, match="ends in .md or .html"):
        write_table(make_table(read_runs(runs)), tmp_path / "t.txt")


def test_damaged_and_mixed_results_are_refused(runs, tmp_path):
    with pytest.raises(DataError, match="results of 2 models"):
        read_runs([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no result.json"):
        read_runs([tmp_path / "empty"])
    path = runs[1] / "asr-librispeech-test-clean" / "result.json"
    good = path.read_text()
    assert read_result(path).main.value == 0.025
    damages = [
        ("{", "["),
        ("most-evaluation-1", "most-evaluation-0"),
        ('"speed"', '"sped"'),
        ('"low"', '"lo"'),
        ('"value": 0.025', '"value": "0.025"'),
        ('"items": 10,\n "left_out"', '"items": "10",\n "left_out"'),
        ('"hash"', '"hush"'),
        ('"task": "asr/librispeech/test-clean"', '"task": 3'),
        ('"left_out": {', '"left_out": {"x": "y"'),
        ("{", '{"model": ' + "[" * 100_000),
    ]
    for old, new in damages:
        assert old in good
        path.write_text(good.replace(old, new, 1))
        with pytest.raises(DataError):
            read_result(path)
