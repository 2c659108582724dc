"""A run's page shows what its lines say, of any run in any state, and loads nothing; what is no run is one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_most.errors import DataError
from megatron_most.report import read_run, run_report, write_report
from megatron_most.report.plots import smoothed, thin
from megatron_most.report.table import EXPERTS, Series, Table
from tests.pages import HOSTILE, STEERING, Seen, require_nothing_loaded

ROOT = Path(__file__).resolve().parent.parent.parent
LAYERS, GROUPS = [1, 2, 3], ["text", "audio"]


def attempt(number: int, step: int, at: float, **more: Any) -> dict[str, Any]:
    return {
        "attempt": number, "step": step, "steps": 30, "at": at, "ready": at + 5.0, "ranks": 2, "layout": "EP2xDP2",
        "device": "cpu", "versions": {"torch": "2.13"}, "parameters": {"total": 10**6, "active": 4 * 10**5}, **more,
    }  # fmt: skip


def step(number: int, at: float, *, task: str = "asr", looks: bool = True, **more: Any) -> dict[str, Any]:
    times = {"forward_backward": 1.5, "optimizer": 0.5, **({"checkpoint": 1.0} if number % 10 == 9 else {})}
    line = {
        "step": number, "at": at, "loss": 5 - 0.1 * number, "loss/text": 4.0, "loss/audio": 6.0, f"task/{task}": 4.5,
        "gradient_norm": 1.0 + number, "skipped": False, "learning_rate": 1e-3, "tokens": 1000, "trained": 800,
        "seconds": sum(times.values()), "times": times, "tokens_per_second": 500.0 + number, "mfu": 0.25,
        "effective": 0.9,
    }  # fmt: skip
    if looks and number % 5 == 0:
        table = [[1.0 + layer / 10, None if number < 10 else 2.0] for layer in LAYERS]
        line |= {"norms": {"head": 0.5, "attention": 0.2}, "memory": {"process": 2**30}}
        line["experts"] = {
            "layers": LAYERS,
            "groups": GROUPS,
            **dict.fromkeys(("load", "dead", "mass", "entropy"), table),
        }
    return line | more


def write_run(folder: Path, lines: list[dict[str, Any]], recipe: str = 'name = "a"\n', torn: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    (folder / "resolved.toml").write_bytes(recipe.encode(errors="surrogatepass"))
    return folder


def usual(folder: Path, last: int = 20, is_ended: bool = False, **more: Any) -> Path:
    """Begun twice; validated after step 10."""
    lines = [attempt(1, 0, 100.0), *(step(n, 110.0 + 2 * n) for n in range(10))]
    lines += [{"step": 10, "validation": "asr", "at": 131.0, "loss": 4.25}, attempt(2, 10, 200.0)]
    lines += [step(n, 190.0 + 2 * n, **more) for n in range(10, last)]
    if is_ended:
        lines.append({"ended": 2, "step": last, "at": 300.0, "times": {"checkpoint": 2.5}})
    return write_run(folder, lines)


def page_of(out: Path, *folders: Path) -> str:
    write_report([read_run(folder) for folder in folders], out)
    return out.read_text(encoding="utf-8")


def test_numbers_come_with_the_steps_that_told_them(tmp_path: Path) -> None:
    run = read_run(usual(tmp_path / "run", gradient_norm=None))
    assert run.series["loss"].steps.tolist() == list(range(20))
    assert run.series["loss"].values.tolist() == pytest.approx([5 - 0.1 * n for n in range(20)])
    assert run.series["times/checkpoint"].steps.tolist() == [9, 19]
    assert run.series["norms/head"].steps.tolist() == [0, 5, 10, 15]
    assert np.isnan(run.series["gradient_norm"].values[10:]).all() and run.series["gradient_norm"].values[9] == 10
    assert run.validations["asr"]["loss"].values.tolist() == [4.25]
    assert run.experts is not None
    assert run.experts.tables["load", "text"].tolist() == [[1.1, 1.2, 1.3]] * 4
    audio = run.experts.tables["load", "audio"]
    assert np.isnan(audio[:2]).all() and (audio[2:] == 2).all()
    began = [(one.line["attempt"], one.last["step"], one.is_ended) for one in run.attempts]
    assert began == [(1, 10, False), (2, 19, False)]


def test_the_page_shows_the_numbers_the_plots_the_attempts_and_the_recipe(tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", usual(tmp_path / "run"))
    require_nothing_loaded(page)
    texts = Seen(page).texts
    titles = [
        "Loss", "Loss by task", "Validation", "Learning rate", "Gradient norm", "Gradient norm by part",
        "Load of text experts", "Load of audio experts", "Dead experts", "In-group mass", "Entropy",
        "Where the time goes", "Tokens per second", "MFU", "Effective time", "Memory",
    ]  # fmt: skip
    assert re.findall("<h3>(.*?)</h3>", page) == titles
    for label, value in [
        ("steps", "20 of 30"), ("tokens", "20k"), ("of them trained on", "16k"), ("loss at the end", "3.100"),
        ("MFU", "25.0 %"), ("effective time", "90.0 %"), ("held up by saving", "2 s"), ("attempts", "2"),
        ("parameters", "1M, 400k active"), ("layout", "2 x cpu, EP2xDP2"), ("time from first to last", "2.1 min"),
        ("best validation, asr", "4.250 after step 10"),
    ]:  # fmt: skip
        at = len(texts) - 1 - texts[::-1].index(label)  # tiles come first, and the other way round
        assert texts[at + 1] == value
    assert texts.count("killed") == 1 and "goes on, or was killed" in texts
    assert 'name = "a"' in page.replace("&#34;", '"')
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) == len(titles)
    assert "#fe" not in "".join(re.findall(r"<[^>]*>", "".join(drawn)))  # every colour is the page's


def test_what_came_after_the_last_step_counts(tmp_path: Path) -> None:
    texts = Seen(page_of(tmp_path / "page.html", usual(tmp_path / "run", is_ended=True))).texts
    assert "4.5 s" in [after for label, after in zip(texts, texts[1:], strict=False) if label == "held up by saving"]
    assert texts.count("killed") == 1 and texts.count("by itself") == 1 and "goes on, or was killed" not in texts


def test_equal_runs_give_equal_pages(tmp_path: Path) -> None:
    folder = usual(tmp_path / "run")
    assert page_of(tmp_path / "a.html", folder) == page_of(tmp_path / "b.html", folder)


@pytest.mark.parametrize("torn", ['{"step": 20, "lo', "\x00" * 50, '{"step": 20, "loss": 1.0}'])
def test_a_run_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path, torn: str) -> None:
    folder = usual(tmp_path / "run")
    whole = read_run(folder).series["loss"].steps
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert read_run(folder).series["loss"].steps.tolist() == whole.tolist()


HUGE, DEEP = 10**400, {"layers": [1], "groups": ["text"], **dict.fromkeys(EXPERTS, [[1.0]])}


@pytest.mark.parametrize(
    "change",
    [
        {"step": -5}, {"step": "7"}, {"step": 3}, {"at": None}, {"at": 1e300}, {"loss": "x"}, {"loss": [1]},
        {"loss": 1e308}, {"loss": HUGE}, {"times": [1]}, {"times": {"data": "x"}}, {"times": None}, {"seconds": "x"},
        {"experts": None}, {"experts": {}}, {"experts": DEEP | {"load": [[1.0], [2.0]]}}, {"effective": None},
        {"experts": DEEP | {"mass": [[1.0, 2.0]]}}, {"experts": DEEP | {"dead": [["x"]]}},
        {"experts": DEEP | {"layers": [[1]]}}, {"attempt": 2}, {"attempt": 2, "ready": "x"}, {"validation": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_line_that_no_run_writes_is_passed_over_and_told_of(
    tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [attempt(1, 0, 100.0), *(step(n, 110.0 + n) for n in range(10))]
    folder = write_run(tmp_path / "run", [*lines[:8], lines[8] | change, *lines[9:]])
    assert read_run(folder).series["loss"].steps.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert f"{folder / 'metrics.jsonl'}: damaged in line 9;" in capsys.readouterr().err


def test_more_than_all_of_the_peak_is_shown_as_it_is_with_what_may_be_wrong(tmp_path: Path) -> None:
    lines = [attempt(1, 0, 0.0), *(step(n, 10.0 + n, mfu=1.43) for n in range(3))]
    texts = Seen(page_of(tmp_path / "page.html", write_run(tmp_path / "run", lines))).texts
    assert "143 %: above the peak, so telemetry.peak_flops is too low" in texts


def test_lines_that_name_other_things_make_one_series_in_the_order_of_steps() -> None:
    table = Table()
    for n in range(9):
        table.add(n, {"step": n, "loss": float(n), **({"times": {"a": n, "b": None}} if n % 3 == 0 else {"c": True})})
    series = table.series()
    assert list(series) == ["loss", "times/a", "c"]  # b never had a number
    assert series["loss"].steps.tolist() == series["loss"].values.tolist() == list(range(9))
    assert series["times/a"].steps.tolist() == [0, 3, 6] and series["c"].values.tolist() == [1.0] * 6


def test_short_and_poor_runs_have_a_page_too(tmp_path: Path) -> None:
    """One step; a dense model's, without looks; and lines of before attempts were told."""
    lines = [[attempt(1, 0, 0.0), step(0, 10.0)], [attempt(1, 0, 0.0), *(step(n, 10.0, looks=False) for n in range(3))]]
    lines += [[{"step": n, "loss": 1.0, "seconds": 0.5, "tokens": 5, "skipped": False} for n in range(3)]]
    for number, one in enumerate(lines):
        page = page_of(tmp_path / f"{number}.html", write_run(tmp_path / f"run{number}", one))
        require_nothing_loaded(page)
        assert ("Dead experts" in page) == (number == 0) and "Loss" in page


def test_several_runs_lie_over_one_another_in_a_plot_of_each_number(tmp_path: Path) -> None:
    folders = [usual(tmp_path / "a" / "run"), usual(tmp_path / "b" / "run", last=13, task="tts")]
    out = tmp_path / "page.html"
    run_report([*map(str, folders), "--out", str(out)])
    page = out.read_text()
    require_nothing_loaded(page)
    texts = Seen(page).texts
    assert {"Loss: all", "Loss: text", "Loss: audio", "Loss by task: asr", "Loss by task: tts", "MFU"} <= set(texts)
    assert {"Load of text experts of a/run", "Load of text experts of b/run"} <= set(texts)  # told apart
    assert texts.count("Gradient norm by part") == 0
    at = texts.index("Loss: all")
    assert {"a/run", "b/run"} <= set(texts[at : at + 5])  # the key


@pytest.mark.parametrize("name", [HOSTILE, f"{STEERING} 多語"], ids=["html", "control"])
def test_no_name_changes_the_page(tmp_path: Path, name: str) -> None:
    pages = []
    for number, called in enumerate(("plain", name)):
        lines = [attempt(1, 0, 0.0, device=called, layout=called, versions={called: called})]
        lines += [step(n, 10.0, task=called, norms={called: 1.0}, memory={called: 1}) for n in range(6)]
        for line in lines[1:]:
            line["experts"] = {"layers": [1], "groups": [called], **dict.fromkeys(EXPERTS, [[1.0]])}
        lines.append({"step": 6, "validation": called, "at": 1.0, "loss": 1.0})
        folder = write_run(tmp_path / str(number), lines, recipe=f"{called}\n" * 3)
        write_report([read_run(folder, called)], tmp_path / "page.html")
        pages.append((tmp_path / "page.html").read_text(encoding="utf-8"))
    plain, seen = (Seen(page) for page in pages)
    assert seen.tags == plain.tags
    assert [name for _, name, _ in seen.attributes] == [name for _, name, _ in plain.attributes]
    assert all(sign.isprintable() or sign == "\n" for sign in pages[1])
    require_nothing_loaded(pages[1])


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda folder: None, "run: no such folder; give the folder of a run"),
        (lambda folder: folder.write_text("x"), "run: no such folder; give"),
        (lambda folder: folder.mkdir(), "run: not a run, it holds no metrics.jsonl"),
        (lambda folder: write_run(folder, []), r"metrics.jsonl: no step in it yet; wait"),
        (lambda folder: write_run(folder, [attempt(1, 0, 0.0)]), r"metrics.jsonl: no step in it yet; wait"),
        (lambda folder: write_run(folder, [], torn="not json\n"), r"metrics.jsonl: no step in it yet; wait"),
        (lambda folder: write_run(folder, [{"epoch": 1}]), r"metrics.jsonl: no step in it yet; wait"),
    ],
)
def test_what_is_no_run_is_said_in_one_line(tmp_path: Path, make: Any, wrong: str) -> None:
    make(tmp_path / "run")
    with pytest.raises(DataError, match=wrong) as caught:
        run_report([str(tmp_path / "run"), "--out", str(tmp_path / "page.html")])
    assert "\n" not in str(caught.value) and not (tmp_path / "page.html").exists()
    with pytest.raises(DataError, match="give --out a file name that ends in .html"):
        run_report([str(tmp_path / "run"), "--out", str(tmp_path / "page")])


def test_the_command_writes_into_the_runs_folder_unless_told_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = usual(tmp_path / "run")
    run_report([str(folder)])
    assert (folder / "report.html").exists() and "run up to step 20" in capsys.readouterr().err


def test_without_a_run_the_command_ends_with_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "tools/report.py", str(tmp_path / "gone")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "no such folder" in done.stderr


def test_a_thinned_curve_keeps_its_mean_and_its_gaps() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=12_000)
    values[3000:6000] = np.nan
    steps, mean = thin(Series(np.arange(12_000.0), values))
    assert len(steps) == 400 and np.isnan(mean).sum() == 100
    assert np.nanmean(mean) == pytest.approx(np.nanmean(values), abs=1e-12)
    assert steps[0] == pytest.approx(14.5) and steps[-1] == pytest.approx(11_984.5)


def test_smoothing_leaves_a_line_straight_and_does_not_close_gaps() -> None:
    line = 3.0 + 2.0 * np.arange(200.0)
    assert smoothed(line)[10:-10] == pytest.approx(line[10:-10])
    noisy = line + np.random.default_rng(0).normal(size=200)
    noisy[50] = np.nan
    smooth = smoothed(noisy)
    assert np.isnan(smooth[50]) and np.isfinite(np.delete(smooth, 50)).all()
    assert np.nanstd((smooth - line)[10:-10]) < 0.5 * np.nanstd(noisy - line)
