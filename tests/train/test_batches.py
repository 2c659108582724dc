"""Global batches that ranks do not divide, that grow, or that count documents: the same steps in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import TrainConfig, batch_rows
from tests.phases import lines, losses, recipe, refusal, run

SHORT = {"train.steps": 3, "checkpoint.every": 0, "train.validate_every": 0}


def test_a_growing_batch_begins_and_ends_as_told() -> None:
    train = TrainConfig(global_batch_size=32, ramp_from=8, ramp_steps=6)
    assert [batch_rows(train, step) for step in range(8)] == [8, 12, 16, 20, 24, 28, 32, 32]
    assert [batch_rows(TrainConfig(global_batch_size=32), step) for step in (0, 5)] == [32, 32]


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("one")
    run(recipe(data, folder, **SHORT))
    return losses(folder)


@pytest.mark.parametrize(("world", "kind"), [(3, "plain"), (6, "plain"), (3, "deepspeed")])
def test_losses_are_equal_on_1_3_and_6_data_parallel_ranks(
    data: Path, tmp_path: Path, unbroken: dict[int, float], world: int, kind: str
) -> None:
    run(recipe(data, tmp_path, **SHORT, **{"engine.kind": kind, "train.micro_batch_size": 2}), world)  # of 8 rows
    assert losses(tmp_path) == pytest.approx(unbroken, rel=2e-5)


def of_steps(folder: Path, field: str) -> list[Any]:
    return [line[field] for line in lines(folder) if field in line]


VARIED: dict[str, dict[str, Any]] = {
    "growing": {"train.ramp_from": 1, "train.ramp_steps": 2, "train.global_batch_size": 4, "train.micro_batch_size": 1},
    "documents": {"train.batch_counts": "documents", "train.global_batch_size": 8, "train.micro_batch_size": 1},
}


@pytest.mark.parametrize("how", VARIED)
def test_steps_of_different_lengths_are_the_same_under_zero(data: Path, tmp_path: Path, how: str) -> None:
    changes = {**SHORT, **VARIED[how]}
    run(recipe(data, tmp_path / "one", **changes))
    tokens = of_steps(tmp_path / "one", "tokens")
    assert len(set(tokens)) > 1  # steps do differ
    for stage in (1, 3):
        zero = {"engine.kind": "deepspeed", "engine.zero_stage": stage}
        run(recipe(data, tmp_path / f"zero{stage}", **changes, **zero), 2)
        assert losses(tmp_path / f"zero{stage}") == pytest.approx(losses(tmp_path / "one"), rel=2e-5)
        assert of_steps(tmp_path / f"zero{stage}", "tokens") == tokens


def test_a_batch_of_documents_holds_as_many_documents_each_time(data: Path, tmp_path: Path) -> None:
    run(recipe(data, tmp_path, **SHORT, **VARIED["documents"]))
    assert of_steps(tmp_path, "position") == [{"window": step + 1, "row": 0} for step in range(3)]


def test_a_growing_batch_goes_on_growing_after_a_stop(data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **VARIED["growing"], "checkpoint.every": 2}
    run(recipe(data, tmp_path / "whole", **changes))
    cut = recipe(data, tmp_path / "cut", **changes)
    run(cut)
    for name in ("step-00000003", "latest"):  # as if the run had ended after step 2
        path = tmp_path / "cut" / "checkpoints" / name
        path.rename(tmp_path / name)
    run(cut)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"train.ramp_from": 4}, "train.ramp_steps = 0: train.ramp_from is 4"),
        ({"train.ramp_from": 9, "train.ramp_steps": 2}, "train.ramp_from = 9: train.global_batch_size is 8"),
        ({**VARIED["documents"], "train.ramp_from": 4, "train.ramp_steps": 2}, "train.ramp_from = 4: grows rows only"),
    ],
)
def test_what_cannot_grow_is_refused(data: Path, tmp_path: Path, changes: dict[str, Any], wrong: str) -> None:
    assert wrong in refusal(recipe(data, tmp_path, **changes))
