"""The ablation: its variants differ in what they are named after and in nothing else, it goes on, and its page is what
was measured.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import Facts, build, count_parameters, meaning
from tests.doc_words import commands_by, of_make
from tests.phases import make_blend
from tests.programs import run_program

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import ablation  # noqa: E402  (a folder of scripts, as it is when ablation.py is run)
from ablation_page import BEGIN, END, Result, fill, table  # noqa: E402

ONE = Facts(world_size=1, device="cpu", core_version=(0, 16))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laid out as examples/two_phases does."""
    root = make_blend(tmp_path_factory.mktemp("blend"))
    (root / "text-lm").rename(root / "all")
    (root / "text-lm").mkdir()
    for part in ("train", "valid"):
        (root / "text-lm" / part).symlink_to(root / "all")
    return root


def jobs(data: Path, steps: int) -> dict[str, Any]:
    found = ablation.plan([*ablation.VARIANTS], [0], steps, {})
    return {job.name: ablation.recipe_of(job, data, data / "run", None) for job in found}


@pytest.mark.parametrize("scale", ablation.SCALES)
def test_every_variant_is_a_run_of_as_many_active_parameters(data: Path, scale: str) -> None:
    configs = jobs(data, ablation.SCALES[scale].steps)
    active = {name: count_parameters(build(config, ONE)).active for name, config in configs.items()}
    router = 8 * 96 * 4  # which the dense model has not
    assert max(active.values()) - min(active.values()) == router and min(active, key=active.__getitem__) == "dense"
    shares = {
        name: [getattr(config.data, task).weight for task in ("asr", "tts", "text_lm")]
        for name, config in configs.items()
    }
    assert all(found == [0.6, 0.3, 0.1] for found in shares.values())


def test_a_variant_differs_in_what_it_is_named_after_alone(data: Path) -> None:
    configs = jobs(data, 40)
    first = configs["MAMoE"]
    for name, config in configs.items():
        mine, its = meaning(config), meaning(first)
        apart = {field for field in mine.keys() | its.keys() if mine.get(field) != its.get(field)}
        told = {*ablation.VARIANTS[name]} - {"moe.aux_loss"}
        if name == "dense":
            told = {field for field in its if field.startswith("moe.")} & apart
        if name == "upcycled from dense":
            told |= {"model.dense_hidden_size"}  # of its parent; no layer of its own is dense
        assert apart == told, name


def test_an_upcycled_models_steps_are_its_parents_and_its_own(data: Path) -> None:
    [job] = ablation.plan(["upcycled from dense"], [7], 40, {})
    assert job.parent is not None and job.parent.seed == 7
    assert job.changes["train.steps"] + job.parent.changes["train.steps"] == 40
    assert job.parent.changes["moe.num_experts"] == 0
    assert job.parent.changes["model.dense_hidden_size"] == job.changes["moe.expert_hidden_size"]


def test_it_trains_and_goes_on_and_tells(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands are run in forked processes here: those that it starts would import for longer than they work."""
    ran: list[str] = []

    def call(log: Path, program: str, *words: object) -> None:
        ran.append(program)
        done = run_program(ROOT / program, *(str(word) for word in words), cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]

    monkeypatch.setattr(ablation, "call", call)
    page = tmp_path / "ablation.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    few = {"train.sequence_length": 128, **ablation.SCALES["ci"].changes}
    monkeypatch.setitem(ablation.SCALES, "ci", ablation.Scale(4, few))
    by = "train/test_bench_ablation.py::test_it_trains_and_goes_on_and_tells"
    made, [command] = of_make("ablation"), [one for one in commands_by(by, tmp_path) if one.words[0] != "make"]
    assert made == [list(command.words[:2])], "the other command of the page is this one without options"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    words = command.smaller[1:] + ["--out", "out", "--page", str(page)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(ablation.signal, "signal", lambda *_: None)
    ablation.main()
    assert ran == ["tools/train.py"] * 2 + ["tools/convert_ckpt.py"] * 2 + ["tools/train.py"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [result["name"] for result in results] == ["MAMoE", "upcycled from dense"]
    assert all({*result["losses"]} == {"asr", "tts", "text-lm"} for result in results)
    assert results[0]["losses"] != results[1]["losses"] and results[0]["active"] == results[1]["active"]
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "| MAMoE |" in text
    assert (tmp_path / "ablation.svg").read_text().count("upcycled from dense") >= 1
    ablation.main()
    assert len(ran) == 5, "finished runs are not trained again"


def test_a_run_that_was_not_looked_at_is_not_done(tmp_path: Path) -> None:
    [job] = ablation.plan(["MAMoE"], [0], 4, {})
    assert not ablation.is_done(tmp_path, job)
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    lines = [{"parameters": {"total": 2, "active": 1}}, {"validation": "asr", "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not ablation.is_done(tmp_path, job)
    more = [{"validation": task, "loss": 1.0} for task in ("tts", "text-lm")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines + more))
    assert ablation.is_done(tmp_path, job)


def test_the_table_tells_means_ranges_and_differences_by_seed() -> None:
    def result(name: str, seed: int, loss: float) -> Result:
        return Result(
            name=name, seed=seed, total=2000, active=1000, losses=dict.fromkeys(("asr", "tts", "text-lm"), loss)
        )

    rows = [result("a", 0, 1.0), result("a", 1, 3.0), result("b", 0, 1.5), result("b", 1, 3.25)]
    lines = table(rows).splitlines()
    assert lines[2].startswith("| a | 2,000 | 1,000 | 2.000 (1.000 to 3.000) |") and lines[2].endswith("|  |  |  |")
    assert lines[3].endswith("| +0.375 (+0.250 to +0.500) |")
    bars = "\n![losses by task and variant](ablation.svg)\n"
    assert fill(f"x\n{BEGIN}{END}y\n", rows) == f"x\n{BEGIN}{table(rows)}{bars}{END}y\n"


def test_the_page_shows_what_its_numbers_say() -> None:
    page, numbers = ROOT / "docs" / "ablation.md", ROOT / "docs" / "ablation.json"
    text = page.read_text(encoding="utf-8")
    rows = [Result(**row) for row in json.loads(numbers.read_text(encoding="utf-8"))]
    assert [asdict(row) for row in rows] == json.loads(numbers.read_text(encoding="utf-8"))
    assert fill(text, rows) == text
