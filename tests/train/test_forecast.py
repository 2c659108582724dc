"""What a phase will take is what it then takes: documents, rows, tokens, epochs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_most.config import Facts, Plan, build
from megatron_most.data import Position, Reader
from megatron_most.runtime import find_device
from megatron_most.train.blend import open_reader
from megatron_most.train.forecast import describe, forecast
from tests.phases import lines, recipe, run

CPU = Facts(world_size=1, device="cpu", core_version=(0, 16))


def described(plan: Plan, reader: Reader) -> list[str]:
    session: Any = SimpleNamespace(plan=plan, device=find_device("cpu"))
    return describe(session, reader, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"train.global_batch_size": 40, "train.steps": 8},
        {"train.batch_counts": "documents", "train.global_batch_size": 64, "train.steps": 8},
        {"train.ramp_from": 4, "train.ramp_steps": 6, "train.global_batch_size": 40, "train.steps": 8},
    ],
    ids=["rows", "documents", "growing"],
)
def test_tokens_and_epochs_come_as_told(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    small = {"train.validate_every": 0, "checkpoint.every": 0, "model.num_layers": 2}
    config = recipe(data, tmp_path, **{**small, **changes})
    plan = build(config, CPU)
    reader = open_reader(plan)
    told = forecast(plan, reader)
    run(config)
    taken = lines(tmp_path)
    tokens = sum(line["tokens"] for line in taken if "tokens" in line)
    assert told.tokens == pytest.approx(tokens, rel=0.03)
    assert told.filled == pytest.approx(told.tokens / told.rows / 128) and 0.5 < told.filled <= 1
    last = [line["position"] for line in taken if "position" in line][-1]
    progress = {task.name: task.epochs for task in reader.progress(Position.from_dict(last))}
    assert told.epochs == pytest.approx(progress, rel=0.1)
    assert not any("validation" in line for line in described(plan, reader))  # there is none
    rest = forecast(plan, reader, first=6)
    assert rest.steps == 2 and rest.tokens < told.tokens / 2


def test_a_short_phase_is_told_from_the_windows_that_it_takes(data: Path, tmp_path: Path) -> None:
    plan = build(recipe(data, tmp_path, **{"train.steps": 2, "data.window": 8}), CPU)
    reader, seen = open_reader(plan), []
    window_rows = reader.window_rows

    def look(window: int) -> Any:
        seen.append(window)
        return window_rows(window)

    reader.window_rows = look  # type: ignore[assignment]
    told = forecast(plan, reader)
    *whole, last = (len(window_rows(window)) for window in seen)
    assert seen == list(range(len(seen))) and sum(whole) < 16 <= sum(whole) + last  # two batches of eight rows
    assert told.rows == pytest.approx(16) and told.documents == pytest.approx(16 * 8 * len(seen) / (sum(whole) + last))
