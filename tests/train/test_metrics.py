"""What a run tells: each line is true, adds up, and is told once, by rank 0, over stops and restarts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import TelemetryConfig, count_flops, load_recipe, replace
from megatron_most.data import PackedRow, Position, Step
from megatron_most.data.packing import Piece
from megatron_most.engine import make_engine, make_plan, open_groups
from megatron_most.errors import ConfigError
from megatron_most.model import build_model, part_names
from megatron_most.moe import collect, routers
from megatron_most.report import read_run
from megatron_most.runtime import Ranks
from megatron_most.train import board
from megatron_most.train.metrics import Metrics
from megatron_most.train.synthetic import synthetic_steps
from tests.harness import run_ranks

TASKS = ("asr", "tts")
STEPS, ROWS, LENGTH = 6, 4, 32
LOST_S, EARLIER_S = 0.2, 100.0


def train(ranks: Ranks, folder: Path, first: int, last: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Steps first..last-1 of a tiny run as its loop takes them, with a pause that stands for a save after each."""
    named = {
        "train.steps": STEPS, "train.sequence_length": LENGTH, "train.global_batch_size": ROWS,
        "train.micro_batch_size": 1, "telemetry.every": 2, **changes,
    }  # fmt: skip
    plan = make_plan(replace(load_recipe("most-tiny"), named), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        engine = make_engine(build_model(plan, session.groups), plan, session.groups)
        batches_of = synthetic_steps(plan, session.groups)
        metrics = Metrics(session, engine, TASKS, folder, first, time.time() - EARLIER_S)
        rows = [PackedRow((Piece(0, 0, n, 0, LENGTH + 1),)) for n in range(ROWS)]
        start = time.perf_counter()
        reports = []
        for step in range(first, last):
            batches = batches_of(step)
            for batch in batches:
                batch.tasks_BS[:] = step % 2
            metrics.lap("data")
            reports.append(engine.step(batches, 1e-3, lap=metrics.lap, look=metrics.looks_at(step)))
            metrics.step(step, reports[-1], Step(batches=batches, rows=rows, after=Position(0, step)), 1e-3)
            time.sleep(LOST_S)
            metrics.flush()
            metrics.lap("checkpoint")
        took = time.perf_counter() - start
        left = collect(routers(engine.model), session.groups.tokens, session.groups.stages)
        if changes.get("stop_without_a_word"):
            return {}
        metrics.close()
        return {"reports": reports, "took": took, "left": left, "plan": plan, "load": metrics.expert_load()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of two expert-parallel ranks, whole."""
    folder = tmp_path_factory.mktemp("told")
    first, _ = run_ranks(train, 2, folder, 0, STEPS, {"layout.expert": 2, "telemetry.peak_flops": 1e12})
    return folder, first


def test_a_line_a_step_from_one_rank_with_times_that_add_up(told: tuple[Path, dict[str, Any]]) -> None:
    folder, run = told
    attempt, *steps, ended = lines(folder)
    assert [attempt["attempt"], attempt["step"], attempt["ranks"], attempt["layout"]] == [1, 0, 2, "EP2xDP2"]
    assert [ended["ended"], ended["step"]] == [1, STEPS]
    assert [line["step"] for line in steps] == list(range(STEPS))
    for line in steps:
        assert sum(line["times"].values()) == pytest.approx(line["seconds"], abs=1e-5)
        assert {"data", "check", "forward_backward", "optimizer"} <= set(line["times"])
        assert ("telemetry" in line["times"]) == (line["step"] > 0)  # a line tells what came since the one before
        assert line["times"].get("checkpoint", LOST_S) == pytest.approx(LOST_S, abs=0.15)
        assert line["times"].get("other", 0.0) < 0.1 * line["seconds"]
    whole = sum(line["seconds"] for line in steps) + sum(ended["times"].values())
    assert whole == pytest.approx(run["took"], rel=0.02)
    assert ended["times"]["checkpoint"] == pytest.approx(LOST_S, abs=0.15)


def test_the_loads_that_checkpoints_keep_are_those_of_all_tokens_that_had_a_choice(
    told: tuple[Path, dict[str, Any]],
) -> None:
    folder, run = told
    load, moe = run["load"], run["plan"].moe
    looks = [line["experts"] for line in lines(folder) if "experts" in line]
    assert load.step == STEPS and load.groups == {"text": (0, 1, 2, 3), "audio": (4, 5, 6, 7)}
    assert list(load.layers) == looks[0]["layers"]
    for load_E in load.layers.values():
        for name, group in load.groups.items():
            assert sum(load_E[e] for e in group) == moe.top_k * sum(look["tokens"][name] for look in looks)
    at, (last,) = looks[0]["layers"].index(1), [look for look in looks[-1:]]
    assert last["load"][at][0] > 1.0 and max(load.layers[1][:4]) > sum(load.layers[1][:4]) / 4


def test_lines_say_what_the_engine_reported(told: tuple[Path, dict[str, Any]]) -> None:
    folder, run = told
    flops = count_flops(run["plan"])
    for line, report in zip(lines(folder)[1:-1], run["reports"], strict=True):
        assert line["loss"] == report.loss and line["gradient_norm"] == report.gradient_norm
        assert {name: line[f"loss/{name}"] for name in report.losses} == report.losses
        assert line[f"task/{TASKS[line['step'] % 2]}"] == report.loss  # a step's batches are of one task here
        assert f"task/{TASKS[1 - line['step'] % 2]}" not in line
        assert line["position"] == {"window": 0, "row": line["step"]} and line["tokens"] == ROWS * LENGTH
        took = line["seconds"] - line["times"].get("checkpoint", 0.0)
        assert line["tokens_per_second"] == pytest.approx(ROWS * LENGTH / took, rel=1e-3)
        products = flops.of_step(ROWS * LENGTH, ROWS * LENGTH * (LENGTH + 1) // 2)
        assert line["mfu"] == pytest.approx(products / took / 2e12, rel=1e-3)  # two ranks of 1e12 each
        is_looked_at = line["step"] in (0, 2, 4, 5)
        assert ("norms" in line, "experts" in line, "memory" in line) == (is_looked_at,) * 3
        if is_looked_at:
            assert line["norms"] == report.norms and tuple(report.norms) == part_names(run["plan"])
            assert line["memory"]["process"] > 10**8
    assert sum(sum(layer.load) for layer in run["left"]) == 0  # all was told, nothing is left


def test_looks_at_the_experts_count_every_token_since_the_last_one(told: tuple[Path, dict[str, Any]]) -> None:
    looks = {line["step"]: line["experts"] for line in lines(told[0]) if "experts" in line}
    for step, steps in ((0, 1), (2, 2), (4, 2), (5, 1)):
        seen = looks[step]
        assert sum(seen["tokens"].values()) == steps * ROWS * LENGTH and seen["tokens"]["wave"] > 0
        assert seen["layers"] == [1, 2, 3] and seen["groups"] == ["text", "audio"]
        for kind in ("load", "dead", "mass", "entropy"):
            assert [len(row) for row in seen[kind]] == [2, 2, 2]
        assert all(1 <= load <= 4 for row in seen["load"] for load in row)
        assert all(0 < mass < 1 for row in seen["mass"] for mass in row)


def test_time_that_taught_nothing_counts_against_the_run(told: tuple[Path, dict[str, Any]]) -> None:
    attempt, *steps, _ = lines(told[0])
    learnt = 0.0
    for line in steps:
        learnt += line["seconds"] - line["times"].get("checkpoint", 0.0)
        assert line["effective"] == pytest.approx(learnt / (line["at"] - attempt["at"]), rel=1e-3)
    assert steps[-1]["effective"] < 0.2  # the run says that it began long before


def test_a_run_that_goes_on_tells_each_step_once_and_counts_the_pause(tmp_path: Path) -> None:
    run_ranks(train, 1, tmp_path, 0, 5, {})
    before = lines(tmp_path)
    run_ranks(train, 1, tmp_path, 3, STEPS, {})
    after = lines(tmp_path)
    assert after[:4] == before[:4]  # the first attempt and its steps 0 to 2
    assert [line.get("attempt", line["step"]) for line in after if "seconds" in line or "attempt" in line] == [
        1, 0, 1, 2, 2, 3, 4, 5,
    ]  # fmt: skip
    steps = [line for line in after if "seconds" in line]
    learnt = sum(line["seconds"] - line["times"].get("checkpoint", 0.0) for line in steps)
    assert steps[-1]["effective"] == pytest.approx(learnt / (steps[-1]["at"] - before[0]["at"]), rel=1e-3)
    shown = read_tensorboard(tmp_path / "tensorboard")
    assert [step for step, _ in shown["loss"]] == list(range(STEPS))
    assert [value for _, value in shown["loss"]] == pytest.approx([line["loss"] for line in steps], rel=1e-6)
    assert [step for step, _ in shown["norms/head"]] == [0, 2, 4, 5]
    assert [step for step, _ in shown["experts/load/audio/layer 3"]] == [0, 2, 4, 5]


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_report_reads_what_a_run_tells(told: tuple[Path, dict[str, Any]]) -> None:
    folder, run = told
    found = read_run(folder)
    assert found.series["loss"].values.tolist() == [report.loss for report in run["reports"]]
    assert found.series["norms/head"].steps.tolist() == [0, 2, 4, 5]
    names = {"loss/text", "task/asr", "mfu", "times/optimizer", "memory/process", "tokens_per_second", "effective"}
    assert names <= set(found.series)
    assert found.experts is not None and found.experts.tables["mass", "audio"].shape == (4, 3)
    assert [(one.line["step"], one.last["step"], one.is_ended) for one in found.attempts] == [(0, STEPS, True)]


def test_nothing_is_measured_that_nobody_asked_for(tmp_path: Path) -> None:
    run_ranks(train, 1, tmp_path, 0, 3, {"telemetry.every": 0, "telemetry.tensorboard": False})
    assert not (tmp_path / "tensorboard").exists()
    steps = [line for line in lines(tmp_path) if "seconds" in line]
    assert len(steps) == 3 and not any({"norms", "experts", "memory"} & set(line) for line in steps)
    assert [line["mfu"] for line in steps] == [None] * 3  # a CPU's peak is not guessed


def test_a_board_that_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
    board.require_boards(TelemetryConfig())
    with pytest.raises(ConfigError, match=r"telemetry.wandb = True: wandb is not installed; `pip install wandb`"):
        board.require_boards(TelemetryConfig(wandb=True))


WANDB = """
import json, pathlib
def init(**settings):
    if settings["name"] == "nobody":
        raise RuntimeError("not logged in")
    return Run(settings)
class Run:
    def __init__(self, settings):
        self.file = open(pathlib.Path(settings["dir"]) / "heard", "a")
        self.file.write(json.dumps(settings, default=str) + "\\n")
    def log(self, values, step):
        self.file.write(json.dumps([step, values]) + "\\n")
    def finish(self):
        self.file.close()
"""


def test_weights_and_biases_hears_the_numbers_under_one_id_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the library writes down what it is told."""
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-mine")
    config = replace(load_recipe("most-tiny"), {"telemetry.wandb": True, "telemetry.tensorboard": False})
    for first in (0, 1):
        [opened] = board.open_boards(config, tmp_path, first, 123.0)
        opened.show(first, 1.0, {"loss": 2.5})
        opened.flush()
        opened.close()
    heard = [json.loads(line) for line in (tmp_path / "heard").read_text().splitlines()]
    assert [told["id"] for told in heard[::2]] == ["most-tiny-123"] * 2 and heard[1::2] == [
        [0, {"loss": 2.5}],
        [1, {"loss": 2.5}],
    ]
    assert heard[0]["resume"] == "allow" and heard[0]["config"]["moe"]["top_k"] == 2
    assert "secret-of-mine" not in (tmp_path / "heard").read_text()
    with pytest.raises(ConfigError, match=r"telemetry.wandb = True: wandb does not start \(not logged in\); log in"):
        board.open_boards(replace(config, {"name": "nobody"}), tmp_path, 0, 123.0)
