"""A phase of training by its public function: it learns, stops when asked, and goes on where it was in any layout."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import RunConfig
from megatron_most.runtime import Launch, hear_signals
from megatron_most.train import EXIT_STOPPED
from tests.harness import launch_ranks
from tests.phases import STEPS, begin, lines, losses, one_run, recipe, refusal, run


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(recipe(data, folder))
    return folder


def test_a_phase_learns_validates_and_leaves_its_last_checkpoints(unbroken: Path) -> None:
    found = losses(unbroken)
    assert len(found) == STEPS and found[STEPS - 1] < 0.8 * found[0]
    validations = [entry for entry in lines(unbroken) if "validation" in entry]
    assert [(entry["step"], entry["validation"]) for entry in validations] == [(6, "asr"), (12, "asr")]
    assert validations[1]["loss"] < validations[0]["loss"]
    names = sorted(path.name for path in (unbroken / "checkpoints").iterdir())
    assert names == ["latest", "step-00000004", "step-00000008", "step-00000012"]
    assert (unbroken / "resolved.toml").exists()


@pytest.mark.parametrize(
    ("world", "changes", "tolerance"),
    [
        (1, {}, 0.0),
        (2, {}, 5e-5),
        (2, {"layout.expert": 2}, 5e-5),
        (2, {"layout.tensor": 2, "engine.kind": "deepspeed"}, 5e-5),
    ],
    ids=["same", "DP2", "EP2", "TP2 ZeRO"],
)
def test_a_killed_run_goes_on_and_its_stitched_losses_are_the_unbroken_ones(
    data: Path, tmp_path: Path, unbroken: Path, world: int, changes: dict[str, Any], tolerance: float
) -> None:
    process = begin(recipe(data, tmp_path))
    while not (tmp_path / "checkpoints" / "step-00000004").exists():
        time.sleep(0.005)
        assert process.is_alive(), "the run ended before it could be killed"
    process.kill()
    process.join()
    run(recipe(data, tmp_path, **changes), world)
    stitched, whole = losses(tmp_path), losses(unbroken)
    assert set(stitched) == set(whole)
    for step in whole:
        assert stitched[step] == pytest.approx(whole[step], rel=tolerance, abs=0)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1", "file"])
def test_asked_to_stop_it_saves_and_says_so_and_then_goes_on(
    data: Path, tmp_path: Path, unbroken: Path, how: str
) -> None:
    process = begin(recipe(data, tmp_path, **{"checkpoint.every": 0}))
    while not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.005)
    if how == "file":
        (tmp_path / "stop").touch()
    else:
        os.kill(process.pid, getattr(signal, how))
    process.join(60)
    assert process.exitcode == EXIT_STOPPED
    [saved] = [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("step-")]
    assert 0 < int(saved.name[5:]) < STEPS and len(losses(tmp_path)) == int(saved.name[5:])
    (tmp_path / "stop").unlink(missing_ok=True)
    run(recipe(data, tmp_path))
    assert losses(tmp_path) == losses(unbroken)


def asked_while_it_begins(launch: Launch, config: RunConfig) -> int:
    hear_signals()  # as tools/train.py does, before it imports what is needed
    os.kill(os.getpid(), signal.SIGTERM)
    return one_run(launch, config)


def test_asked_to_stop_before_anything_is_open_it_saves_its_first_step(data: Path, tmp_path: Path) -> None:
    assert launch_ranks(asked_while_it_begins, 1, recipe(data, tmp_path)) == [EXIT_STOPPED]
    assert (tmp_path / "checkpoints" / "step-00000001").exists() and len(losses(tmp_path)) == 1


def test_what_would_make_it_another_run_is_refused_by_name(data: Path, tmp_path: Path, unbroken: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    for changes, wrong in [
        ({"train.learning_rate": 1e-3}, "train.learning_rate = 0.001, but the run"),
        ({"moe.top_k": 1}, "moe.top_k = 1, but the run"),
        ({"data.asr.weight": 0.5}, "data.asr.weight = 0.5, but the run"),
        ({"train.steps": 20}, "train.steps = 20, but the run"),
        ({"data.asr.train": [str(data / "asr" / "valid")]}, "fingerprint of dataset 0 of task asr"),
    ]:
        assert re.search(wrong, refusal(recipe(data, folder, **changes)))


def test_phase_2_begins_with_the_weights_of_phase_1_and_a_fresh_optimizer(
    data: Path, tmp_path: Path, unbroken: Path
) -> None:
    changes = {"checkpoint.start_from": str(unbroken), "train.learning_rate": 1e-4, "train.steps": 3}
    run(recipe(data, tmp_path, **changes))
    first = losses(tmp_path)[0]
    assert first < 0.85 * losses(unbroken)[0]


def test_a_task_without_datasets_and_a_run_without_tasks_are_refused(data: Path, tmp_path: Path) -> None:
    for changes, wrong in [
        ({"data.asr.train": []}, "data.asr.train = .*name its datasets"),
        ({"data.asr.weight": 0.0}, "data.asr.weight = 0.0: its datasets would never be read"),
        ({"data.asr.train": [str(data / "gone")]}, "gone"),
        ({"tokens.backbone": "tiny", "tokens.file": None}, "token map"),
    ]:
        assert re.search(wrong, refusal(recipe(data, tmp_path / "run", **changes)))
        assert not list((tmp_path / "run").glob("checkpoints/step*"))
