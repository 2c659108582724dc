"""Below float32: a run that was stopped goes on bit for bit, for what is saved are the float32 masters and moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_most.checkpoint import read_record
from megatron_most.config import RunConfig
from megatron_most.engine import ZeroEngine
from megatron_most.runtime import Launch
from megatron_most.train import run_training
from tests.harness import launch_ranks
from tests.phases import losses, recipe, run

ENGINES: dict[str, dict[str, Any]] = {
    "plain": {},
    **{f"ZeRO-{stage}": {"engine.kind": "deepspeed", "engine.zero_stage": stage} for stage in (1, 2, 3)},
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bf16_run_goes_on_bit_for_bit(data: Path, tmp_path: Path, engine: str) -> None:
    changes = {"engine.precision": "bf16", "train.steps": 4, "checkpoint.every": 2, "train.validate_every": 0}
    config = recipe(data, tmp_path, **changes, **ENGINES[engine])
    run(config)
    whole = losses(tmp_path)
    assert whole[3] < whole[0]
    for name in ("step-00000004", "latest"):
        (tmp_path / "checkpoints" / name).rename(tmp_path / name)
    run(config)
    assert losses(tmp_path) == whole


def run_scaled(launch: Launch, config: RunConfig) -> int:
    """With fp16's moving loss scale, which DeepSpeed's ZeRO has on a CPU only if it is put there."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    made = ZeroEngine.__init__

    def make(engine: ZeroEngine, *given: Any) -> None:
        made(engine, *given)
        engine.engine.optimizer.loss_scaler = DynamicLossScaler(4.0, 2, 1.0, 1, False)  # doubles every 2 steps

    ZeroEngine.__init__ = make  # type: ignore[method-assign]
    return run_training(config, launch)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_moving_loss_scale_goes_on_where_it_was(data: Path, tmp_path: Path, stage: int) -> None:
    changes = {"train.steps": 4, "checkpoint.every": 2, "train.validate_every": 0, "engine.zero_stage": stage}
    config = recipe(data, tmp_path, **changes, **{"engine.kind": "deepspeed"})
    assert launch_ranks(run_scaled, 1, config) == [0]
    whole, scaler = losses(tmp_path), read_record(tmp_path / "checkpoints" / "step-00000004").training["scaler"]
    assert scaler == {"cur_scale": 8.0, "cur_iter": 4, "last_overflow_iter": -1, "cur_hysteresis": 1}
    for name in ("step-00000004", "latest"):
        (tmp_path / "checkpoints" / name).rename(tmp_path / name)
    assert launch_ranks(run_scaled, 1, config) == [0]
    assert read_record(tmp_path / "checkpoints" / "step-00000004").training["scaler"] == scaler
    assert losses(tmp_path) == whole
