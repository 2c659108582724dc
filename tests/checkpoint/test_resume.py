"""A run saved under one layout goes on under any other: the next losses are those of the run that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.checkpoint import LocalTensors, Record, Saver, Shelf, TensorReader, find_pieces, verify_files
from megatron_most.config import Plan, load_recipe, replace
from megatron_most.engine import Engine, make_engine, make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.parallel import Groups
from megatron_most.runtime import Ranks
from megatron_most.train import synthetic_steps
from tests.harness import run_ranks

ROWS, LEARNING_RATE, SAVED_AT, STEPS = 4, 5e-4, 3, 8
COMMON = {
    "train.global_batch_size": ROWS, "train.micro_batch_size": 1, "train.epsilon": 1e-5, "train.clip": 0.5,
    "moe.z_coefficient": 1e-3, "moe.aux_coefficient": 0.05, "moe.bias_rate": 1e-3, "model.init_std": 0.2,
}  # fmt: skip
LOADS = str(Path(__file__).parents[1] / "loads" / "four_layers.json")
ZERO = {"engine.kind": "deepspeed"}
SAVED = (2, {**ZERO, "engine.zero_stage": 1, "layout.expert": 2})
LATER = {
    "same": SAVED,
    "ZeRO-3 EP1": (2, {**ZERO, "engine.zero_stage": 3}),
    "ZeRO-2 EP2": (2, {**ZERO, "engine.zero_stage": 2, "layout.expert": 2}),
    "TP2": (2, {**ZERO, "engine.zero_stage": 1, "layout.tensor": 2}),
    "ZeRO-0": (2, {**ZERO, "engine.zero_stage": 0}),
    "PP2": (2, {**ZERO, "engine.zero_stage": 1, "layout.pipeline": 2}),
    "DP1": (1, {**ZERO, "engine.zero_stage": 1}),
    "EP4": (4, {**ZERO, "engine.zero_stage": 1, "layout.expert": 4}),
    "EP2 dealt": (2, {**ZERO, "engine.zero_stage": 1, "layout.expert": 2, "moe.load_file": LOADS}),
    "plain": (1, {}),
    "plain TP2xEP2": (4, {"layout.tensor": 2, "layout.expert": 2}),
    "plain CP2": (2, {"layout.context": 2}),
}


def steps(engine: Engine, plan: Plan, groups: Groups, first: int, last: int) -> list[float]:
    batches_of = synthetic_steps(plan, groups)
    return [engine.step(batches_of(step), LEARNING_RATE).loss for step in range(first, last)]


def run(ranks: Ranks, changes: dict[str, Any], folder: Path, is_new: bool) -> dict[str, Any]:
    plan = make_plan(replace(load_recipe("most-tiny"), {**COMMON, **changes}), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        assert plan.moe is not None
        pieces = find_pieces(model, plan.moe)
        shelf = Shelf(folder)
        if is_new:
            engine = make_engine(model, plan, session.groups)
            losses = steps(engine, plan, session.groups, 0, SAVED_AT)
        else:
            found = shelf.find_newest(lambda path, record: verify_files(path, record))
            assert found is not None and found[1].step == SAVED_AT
            tensors = LocalTensors(TensorReader(*found), pieces)
            tensors.fill(model)
            engine = make_engine(model, plan, session.groups)
            engine.load_state(tensors.read, found[1].training["updates"])
            losses = []
        saver = Saver(
            Shelf(folder if is_new else folder / "again" / str(ranks.world_size)), pieces, None, keep=2, versions={}
        )
        saver.write(saver.snapshot(SAVED_AT, engine.state(), {"updates": engine.updates}, {"note.txt": "kept"}))
        losses += steps(engine, plan, session.groups, SAVED_AT, STEPS)  # while it is being written
        saver.wait()
        return {"losses": losses, "folder": str(saver.shelf.path(SAVED_AT))}


def whole(folder: Path, record: Record) -> dict[tuple[str, str], torch.Tensor]:
    """Every tensor of a checkpoint, put together."""
    from megatron_most.checkpoint import Piece

    reader, zero = TensorReader(folder, record), lambda shape: (0,) * len(shape)
    return {
        (kind, name): reader.read(kind, Piece(name, t.shape, zero(t.shape), t.shape, "", zero(t.shape)))
        for kind, named in record.tensors.items()
        for name, t in named.items()
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    world, changes = SAVED
    return folder, run_ranks(run, world, changes, folder, True)[0]["losses"]


@pytest.mark.parametrize("later", LATER)
def test_the_next_losses_are_those_of_the_run_that_never_stopped(saved: Any, later: str) -> None:
    folder, unbroken = saved
    world, changes = LATER[later]
    outcome = run_ranks(run, world, changes, folder, False)[0]
    assert len({round(loss, 4) for loss in unbroken}) == STEPS  # something moves
    if later == "same":
        assert outcome["losses"] == unbroken[SAVED_AT:]
    else:
        assert outcome["losses"] == pytest.approx(unbroken[SAVED_AT:], rel=5e-5)
    again = Path(outcome["folder"])
    first, second = (whole(path, read(path)) for path in (folder / f"step-{SAVED_AT:08d}", again))
    assert set(first) == set(second) and {kind for kind, _ in first} == {"weight", "exp_avg", "exp_avg_sq"}
    for key, tensor in first.items():  # what was loaded is what was saved, to the bit, moments included
        assert torch.equal(tensor, second[key]), key


def read(folder: Path) -> Record:
    from megatron_most.checkpoint import read_record

    return read_record(folder)


def test_names_and_shapes_in_a_checkpoint_are_those_of_the_whole_model(saved: Any) -> None:
    record = read(saved[0] / f"step-{SAVED_AT:08d}")
    names = record.tensors["weight"]
    assert {f"decoder.layers.2.mlp.experts.{e}.linear_fc1.weight" for e in range(8)} <= set(names)
    assert names["decoder.layers.2.mlp.experts.7.linear_fc1.weight"].shape == (64, 64)
    assert "decoder.layers.1.mlp.router.expert_bias" in names
    assert set(record.tensors["exp_avg"]) == {
        name for name in names if "expert_bias" not in name and "constant" not in name
    }
    assert "note.txt" in record.files


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_zero_a_run_goes_on_exactly_and_under_other_engines(tmp_path: Path, precision: str) -> None:
    changes = {**ZERO, "engine.zero_stage": 0, "engine.precision": precision}
    unbroken = run_ranks(run, 2, changes, tmp_path, True)[0]["losses"]
    assert len(set(unbroken)) == STEPS
    assert run_ranks(run, 2, changes, tmp_path, False)[0]["losses"] == unbroken[SAVED_AT:]
    record = read(tmp_path / f"step-{SAVED_AT:08d}")
    assert set(record.tensors["exp_avg"]) and record.tensors["weight"].keys() >= record.tensors["exp_avg"].keys()
    later = run_ranks(run, 2, {**changes, "engine.zero_stage": 2}, tmp_path, False)[0]["losses"]
    assert later == pytest.approx(unbroken[SAVED_AT:], rel=5e-5 if precision == "fp32" else 5e-3)
