"""Phase 2's ablations in miniature: each trains a step on the same data, and what it changes changes the loss; real
speech is replayed beside synthetic in the share asked.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from megatron_most.config import Facts, build, dump, require_same_run
from megatron_most.data import Position
from megatron_most.errors import CheckpointError
from megatron_most.train.blend import open_reader
from tests.phases import losses, make_blend, recipe, run

ONE = Facts(world_size=1, device="cpu", core_version=(0, 16))
SHORT = {"train.steps": 1, "train.warmup_steps": 0, "train.validate_every": 0, "telemetry.tensorboard": False}
NO_CHATS = {f"data.{name}.weight": 0.0 for name in ("speech_instruct", "text_instruct")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blend(tmp_path_factory.mktemp("blend"))


def first_loss(data: Path, folder: Path, base: str, **changes: Any) -> float:
    run(recipe(data, folder, base, **{**SHORT, **NO_CHATS, **changes}))
    [(step, loss)] = losses(folder).items()
    assert step == 0 and math.isfinite(loss)
    return loss


def test_every_ablation_of_phase_2_trains_a_step_and_is_another_model(data: Path, tmp_path: Path) -> None:
    uneven = {"moe.groups": ["text: 0-4", "audio: 5-7"]}
    found = {
        "most": first_loss(data, tmp_path / "most", "stage2-tiny"),
        "vanilla": first_loss(data, tmp_path / "vanilla", "stage2-vanilla-moe-tiny"),
        "no-shared": first_loss(data, tmp_path / "no-shared", "stage2-no-shared-tiny"),
        "partition": first_loss(data, tmp_path / "partition", "stage2-tiny", **uneven),
    }
    assert len(set(found.values())) == len(found), found


def test_real_speech_is_replayed_in_its_share_and_told_apart(data: Path, tmp_path: Path) -> None:
    replay = {"data.asr.real": [str(data / "asr" / "valid")], "data.asr.real_share": 0.25, "data.asr.valid": []}
    config = recipe(data, tmp_path / "run", "stage2-tiny", **{**SHORT, **NO_CHATS, **replay})
    reader = open_reader(build(config, ONE))
    shares = {spec.name: share for spec, share in zip(reader.blend.tasks, reader.blend.shares, strict=True)}
    assert shares["asr"] == 3 * shares["asr-real"] and shares["asr"] + shares["asr-real"] == shares["tts"]
    assert shares["asr-real"] == Fraction(1, 10)
    names = [name for row in reader.names(reader.take(Position(0, 0), 60)[0]) for name in row]
    real = {line for line in (data / "asr" / "valid" / "ids.txt").read_text().split()}
    drawn = [name.rpartition(" ")[2].partition("[")[0] for name in names if name.startswith("task asr-real")]
    assert drawn and set(drawn) <= real and len(drawn) == pytest.approx(len(names) / 10, abs=3)
    run(config)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("asr-real")


def test_a_run_begun_before_augmentation_was_known_goes_on_without_it_and_not_with_it(tmp_path: Path) -> None:
    stored = tmp_path / "checkpoints" / "step-00000001" / "resolved.toml"
    stored.parent.mkdir(parents=True)
    config = recipe(tmp_path, tmp_path)
    tables = re.split(r"^(?=\[)", dump(config), flags=re.M)
    older = [table for table in tables if not table.startswith(("[data.augment]", "[data.spec_augment]"))]
    assert len(older) == len(tables) - 2
    stored.write_text(re.sub(r"^real(_share)? = .*\n", "", "".join(older), flags=re.M))
    require_same_run(stored, config, 1)
    with pytest.raises(
        CheckpointError, match="data.augment.noise = 0.1, .*begun with 0.0: it decides how speech sounds"
    ):
        require_same_run(stored, recipe(tmp_path, tmp_path, **{"data.augment.noise": 0.1}), 1)
