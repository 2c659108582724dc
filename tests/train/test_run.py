"""A phase of training by its public function: it learns, stops when asked, and goes on where it was in any layout."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megatron_most.checkpoint.record import sum_of
from megatron_most.config import ExpertLoad, RunConfig, dump
from megatron_most.config.resume import DECIDES, MAY_CHANGE, decides, require_same_run
from megatron_most.data import Position
from megatron_most.errors import CheckpointError
from megatron_most.runtime import Launch, hear_signals
from megatron_most.train import EXIT_STOPPED
from megatron_most.train.state import RunState
from tests.config.runs import FIELDS
from tests.harness import launch_ranks
from tests.phases import STEPS, kill_when_saved, lines, losses, one_run, recipe, refusal, run, run_until

LOADS = "expert_load.json"


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
        (2, {"layout.expert": 2, "moe.load_file": LOADS}, 5e-5),
        (2, {"layout.tensor": 2, "engine.kind": "deepspeed"}, 5e-5),
    ],
    ids=["same", "DP2", "EP2", "EP2 dealt by its own loads", "TP2 ZeRO"],
)
def test_a_killed_run_goes_on_and_its_stitched_losses_are_the_unbroken_ones(
    data: Path, tmp_path: Path, unbroken: Path, world: int, changes: dict[str, Any], tolerance: float
) -> None:
    saved = tmp_path / "checkpoints" / "step-00000004"
    assert run_until(recipe(data, tmp_path), 5, partial(kill_when_saved, saved)) == -signal.SIGKILL
    if "moe.load_file" in changes:
        changes = {**changes, "moe.load_file": str(saved / LOADS)}
        assert ExpertLoad.load(saved / LOADS).step == 4
    run(recipe(data, tmp_path, **changes), world)
    stitched, whole = losses(tmp_path), losses(unbroken)
    assert set(stitched) == set(whole)
    for step in whole:
        assert stitched[step] == pytest.approx(whole[step], rel=tolerance, abs=0)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1", "file"])
def test_asked_to_stop_it_saves_and_says_so_and_then_goes_on(
    data: Path, tmp_path: Path, unbroken: Path, how: str
) -> None:
    def ask() -> None:
        if how == "file":
            (tmp_path / "stop").touch()
        else:
            os.kill(os.getpid(), getattr(signal, how))

    assert run_until(recipe(data, tmp_path, **{"checkpoint.every": 0}), 3, ask) == EXIT_STOPPED
    [saved] = [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("step-")]
    assert int(saved.name[5:]) == 4 == len(losses(tmp_path))  # the step in which it was asked is its last
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
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    for changes, wrong in [
        (
            {"train.learning_rate": 1e-3},
            f"train.learning_rate = 0.001, but the run in {folder} was.*how far steps go that",
        ),
        ({"moe.top_k": 1}, "moe.top_k = 1, but the run"),
        ({"data.asr.weight": 0.5}, "data.asr.weight = 0.5, but the run"),
        ({"train.steps": 20}, "train.steps = 20, but the run"),
        ({"data.asr.train": [str(data / "asr" / "valid")]}, "fingerprint of dataset 0 of task asr"),
    ]:
        assert re.search(wrong, refusal(recipe(data, folder, **changes)))


def test_a_run_is_made_longer_or_cooled_down_where_no_step_taken_would_have_gone_another_way(
    data: Path, tmp_path: Path
) -> None:
    def stored(name: str, **changes: object) -> Path:
        path = tmp_path / name / "checkpoints" / "step-00000006" / "resolved.toml"
        path.parent.mkdir(parents=True)
        path.write_text(dump(recipe(data, tmp_path / name, **changes)))
        return path

    flat = stored("flat", **{"train.schedule": "constant", "train.steps": 6})
    cooled = {"train.schedule": "wsd", "train.steps": 10, "train.decay_steps": 4}
    wsd = stored("wsd", **cooled)
    linear = stored("linear", **{"train.schedule": "linear", "train.steps": 6})
    for was, changes, taken, refused in [
        (flat, {"train.schedule": "constant", "train.steps": 20}, 6, None),
        (flat, cooled, 6, None),
        (flat, {**cooled, "train.decay_steps": 6}, 6, "train.decay_steps"),
        (
            flat,
            {"train.schedule": "constant", "train.steps": 20, "train.learning_rate": 1e-4},
            6,
            "train.learning_rate",
        ),
        (wsd, {**cooled, "train.steps": 20}, 6, None),
        (wsd, {**cooled, "train.steps": 20}, 8, "train.steps"),
        (linear, {"train.schedule": "linear", "train.steps": 20}, 6, "train.steps"),
    ]:
        now = recipe(data, was.parents[2], **changes)
        if refused:
            with pytest.raises(CheckpointError, match=f"{refused} = .*how far steps go that are taken"):
                require_same_run(was, now, taken)
        else:
            require_same_run(was, now, taken)


def test_a_run_of_a_constant_rate_goes_on_beyond_its_end(data: Path, tmp_path: Path) -> None:
    constant = {"train.schedule": "constant", "train.warmup_steps": 0}
    run(recipe(data, tmp_path / "whole", **constant, **{"train.steps": 5}))
    run(recipe(data, tmp_path / "grown", **constant, **{"train.steps": 3}))
    run(recipe(data, tmp_path / "grown", **constant, **{"train.steps": 5}))
    assert losses(tmp_path / "grown") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 5


def test_phase_2_begins_with_the_weights_of_phase_1_and_a_fresh_optimizer(
    data: Path, tmp_path: Path, unbroken: Path
) -> None:
    changes = {"checkpoint.start_from": str(unbroken), "train.learning_rate": 1e-4, "train.steps": 3}
    run(recipe(data, tmp_path, **changes))
    first = losses(tmp_path)[0]
    assert first < 0.85 * losses(unbroken)[0]


def test_weights_are_not_taken_for_others_unless_that_is_said(data: Path, tmp_path: Path, unbroken: Path) -> None:
    started = {"checkpoint.start_from": str(unbroken), "train.steps": 1, "train.validate_every": 0}
    for changes, wrong in [
        ({"moe.gate": "reference"}, "moe.gate = 'reference': the weights of .*step-00000012 have learnt with 'masked_"),
        ({"moe.scale": 2.0}, "moe.scale = 2.0: the weights of .* have learnt with 1.0 .*; give 1.0, convert"),
        ({"moe.groups": ["text: 0-5", "audio: 6,7"]}, r'moe.groups = .*; give \["text: 0-3", "audio: 4-7"\], convert'),
        ({"moe.routing_groups": 1, "moe.routing_groups_kept": 1}, "moe.routing_groups = 1: .*; leave it out, convert"),
        ({"model.rope_theta": 5e5}, "model.rope_theta = 500000.0: the weights of"),
        ({"moe.scale": 2.0, "checkpoint.allow_changes": ["moe.scal"]}, "moe.scal changes nothing.*mean moe.scale"),
    ]:
        assert re.search(wrong, refusal(recipe(data, tmp_path, **started, **changes)))
    run(recipe(data, tmp_path, **started, **{"moe.scale": 2.0, "checkpoint.allow_changes": ["moe.scale"]}))
    assert losses(tmp_path)


def test_balancing_by_a_bias_may_begin_with_a_phase_and_not_end_with_it(
    data: Path, tmp_path: Path, unbroken: Path
) -> None:
    start = {"train.steps": 1, "train.validate_every": 0}
    biased, from_it = tmp_path / "biased", tmp_path / "without"
    run(recipe(data, tmp_path / "plain", **start, **{"checkpoint.start_from": str(unbroken)}))
    run(recipe(data, biased, **start, **{"checkpoint.start_from": str(unbroken), "moe.bias_rate": 0.1}))
    assert losses(biased) == losses(tmp_path / "plain")  # a bias of zeros changes no choice
    said = refusal(recipe(data, from_it, **start, **{"checkpoint.start_from": str(biased)}))
    assert re.search("moe.bias_rate = 0.0: the weights of .* have learnt with 0.1 .*; give 0.1, convert", said), said
    manifest = biased / "checkpoints" / "step-00000001" / "manifest.json"
    found = json.loads(manifest.read_bytes())
    [gone, *_] = [name for name in found["tensors"]["weight"] if name.endswith(".expert_bias")]
    del found["tensors"]["weight"][gone]
    manifest.write_text(json.dumps(found))
    manifest.with_name("manifest.sha256").write_bytes(sum_of(manifest.read_bytes()))
    again = {"checkpoint.start_from": str(biased), "moe.bias_rate": 0.2}
    assert f"no weight of {gone}" in refusal(recipe(data, from_it, **start, **again))  # damage does not begin anew


def test_what_is_balanced_together_may_not_change_where_that_is_a_micro_batch(
    data: Path, tmp_path: Path, unbroken: Path
) -> None:
    stored = tmp_path / "run" / "checkpoints" / "step-00000001" / "resolved.toml"
    stored.parent.mkdir(parents=True)
    for changes, is_refused in [
        ({"moe.aux_scope": "batch"}, True),
        ({"moe.aux_scope": "batch", "moe.aux_coefficient": 0.0, "moe.z_coefficient": 0.1}, True),
        ({"moe.aux_scope": "batch", "moe.aux_coefficient": 0.0}, False),
        ({"moe.aux_loss": "reference", "moe.aux_counts_everything": True}, True),
        ({}, False),
    ]:
        stored.write_text(dump(recipe(data, tmp_path / "run", **changes)))
        other = recipe(data, tmp_path / "run", **changes, **{"train.micro_batch_size": 2})
        if is_refused:
            with pytest.raises(CheckpointError, match="train.micro_batch_size = 2, .*tokens the auxiliary loss bal"):
                require_same_run(stored, other, 1)
        else:
            require_same_run(stored, other, 1)


def test_what_teaches_nothing_may_change_while_a_run_goes_on(data: Path, tmp_path: Path, unbroken: Path) -> None:
    gate = {"forgetting.valid": [str(data / "text-lm")], "train.validate_every": 3, "checkpoint.every": 3}
    run(recipe(data, tmp_path, **gate))
    for name in ("step-00000012", "step-00000009"):
        shutil.rmtree(tmp_path / "checkpoints" / name)
    shutil.copytree(data, tmp_path / "moved")
    changes = {
        "name": "renamed", "forgetting.valid": [str(tmp_path / "moved" / "text-lm")], "forgetting.action": "stop",
        "forgetting.limit": 9.0, "samples.count": 1, "samples.tokens": 2, "train.spike_ratio": 99.0,
        "samples.tokenizer": str(tmp_path / "moved" / "tokenizer"), "train.max_rollbacks": 1, "train.max_skipped": 3,
    }  # fmt: skip
    run(recipe(tmp_path / "moved", tmp_path, **{**gate, **changes}))
    assert losses(tmp_path) == losses(unbroken)
    rises = [entry for entry in lines(tmp_path) if entry.get("validation") == "forgetting"]
    assert [entry["step"] for entry in rises] == [0, 3, 6, 9, 12]  # the base was not taken anew: the texts are the same


def test_a_training_part_that_is_odd_is_one_error(data: Path, tmp_path: Path, unbroken: Path) -> None:
    def without_moments(manifest: dict[str, Any]) -> None:
        del manifest["tensors"]["exp_avg"]

    def of_another_step(manifest: dict[str, Any]) -> None:
        manifest["training"]["loop"]["step"] = 6

    def with_nothing(manifest: dict[str, Any]) -> None:
        manifest["training"] = {}

    def after_too_many_updates(manifest: dict[str, Any]) -> None:
        manifest["training"]["updates"] = 10**30

    def with_an_odd_scale(manifest: dict[str, Any]) -> None:
        manifest["training"]["scaler"] = {"cur_scale": "x"}

    def without_a_place(manifest: dict[str, Any]) -> None:
        del manifest["training"]["data"]

    for spoil, wrong in [
        (without_moments, "step-00000012: no exp_avg of .*; it is damaged"),
        (of_another_step, "step-00000012: its training state is of step 6, its manifest of 12"),
        (with_nothing, "step-00000012: its training state holds no number of updates"),
        (after_too_many_updates, "step-00000012: its training state holds no number of updates .10000"),
        (with_an_odd_scale, "step-00000012: its training state has .* for a loss scale; it is damaged"),
        (without_a_place, "step-00000012: place in the data"),
    ]:
        folder = tmp_path / spoil.__name__
        shutil.copytree(unbroken, folder)
        path = folder / "checkpoints" / "step-00000012" / "manifest.json"
        manifest = json.loads(path.read_bytes())
        spoil(manifest)
        path.write_text(json.dumps(manifest))
        path.with_name("manifest.sha256").write_bytes(sum_of(path.read_bytes()))
        said = refusal(recipe(data, folder))
        assert re.search(wrong, said), said


@pytest.mark.parametrize(
    "odd",
    [
        [], None, {}, {"step": "x"}, {"step": -1}, {"step": True}, {"step": 1, "losses": None}, {"step": 1, "more": 1},
        {"step": 1, "base": "x"}, {"step": 1, "base": {"loss": "x", "texts": "y"}}, {"step": 1, "rollbacks": [1]},
        {"step": 1, "rollbacks": [{}]}, {"step": 1, "rollbacks": [{"step": 1, "from": {}, "to": {}}]},
        {"step": 10**30}, {"step": 1, "skipped": 2}, {"step": 3, "skipped": 1, "skipped_in_a_row": 2},
        {"step": 1, "losses": [math.nan]}, {"step": 1, "base": {"loss": math.inf, "texts": "y"}},
        {"step": 1, "files": [1]}, {"step": 1, "files": {"a": None}}, {"step": 1, "high": 0.5},
    ],
)  # fmt: skip
def test_a_loops_state_that_is_odd_is_refused(odd: Any) -> None:
    with pytest.raises(CheckpointError, match="training state"):
        RunState.from_dict(odd, Position())
    at = Position(3, 1).to_dict()
    whole = RunState(step=3, losses=[1.0], base={"loss": 1.0, "texts": "t"}, skipped=2, skipped_in_a_row=2)
    whole.files, whole.rollbacks = {"a": [1, 2]}, [{"step": 2, "from": at, "to": at}]
    assert RunState.from_dict(whole.to_dict(), Position()) == whole


def test_datasets_of_another_task_are_refused_by_name(data: Path, tmp_path: Path) -> None:
    gate = {"train.validate_every": 6}
    for changes, wrong in [
        ({"data.asr.train": [str(data / "tts" / "train")]}, "data.asr.train = .*tts/train.* is of the task tts; name"),
        ({"data.asr.valid": [str(data / "text-lm")]}, "data.asr.valid = .*: its dataset.json says .* the task text-lm"),
        ({**gate, "forgetting.valid": [str(data / "tts" / "valid")]}, "forgetting.valid = .* the task tts; .* text-lm"),
    ]:
        said = refusal(recipe(data, tmp_path / "run", **changes))
        assert re.search(wrong, said), said


def test_every_field_is_said_to_be_free_or_to_decide_something() -> None:
    names = [f"{name}.x" if name in ("core", "deepspeed") else name for name in FIELDS]
    used = {decides(name) for name in names}  # a KeyError where one was forgotten
    assert None in used and set(DECIDES.values()) <= used
    assert all(map(decides, ("train.seed", "moe.gate", "data.asr.weight", "engine.precision", "model.rope")))
    assert decides("data.asr.valid") is decides("samples.tokenizer") is decides("moe.placement") is None
    for known in MAY_CHANGE:
        assert any(name.startswith(known.replace("*", "asr")) for name in names), known


def test_a_task_without_datasets_and_a_run_without_tasks_are_refused(data: Path, tmp_path: Path) -> None:
    for changes, wrong in [
        ({"data.asr.train": []}, "data.asr.train = .*name its datasets"),
        ({"data.asr.weight": 0.0}, "data.asr.weight = 0.0: its datasets would never be read"),
        ({"data.asr.train": [str(data / "gone")]}, "gone"),
        ({"tokens.backbone": "tiny", "tokens.file": None}, "token map"),
    ]:
        assert re.search(wrong, refusal(recipe(data, tmp_path / "run", **changes)))
        assert not list((tmp_path / "run").glob("checkpoints/step*"))
