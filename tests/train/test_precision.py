"""Below float32: a run that was stopped goes on bit for bit, for what is saved are the float32 masters and moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.phases import losses, recipe, run

ENGINES: dict[str, dict[str, Any]] = {
    "plain": {},
    **{f"ZeRO-{stage}": {"engine.kind": "deepspeed", "engine.zero_stage": stage} for stage in (1, 2, 3)},
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bf16_run_goes_on_bit_for_bit(data: Path, tmp_path: Path, engine: str) -> None:
    changes = {"engine.precision": "bf16", "train.steps": 6, "checkpoint.every": 3, "train.validate_every": 0}
    config = recipe(data, tmp_path, **changes, **ENGINES[engine])
    run(config)
    whole = losses(tmp_path)
    assert whole[5] < whole[0]
    for name in ("step-00000006", "latest"):
        (tmp_path / "checkpoints" / name).rename(tmp_path / name)
    run(config)
    assert losses(tmp_path) == whole
