"""A checkpoint is as large, and of as many files, as the plan says: beside one that two ranks have written."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_most.checkpoint import Saver, Shelf, find_pieces
from megatron_most.config import dump, load_recipe, replace
from megatron_most.data import synthetic_batch
from megatron_most.engine import make_engine, make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.plan.storage import storage_of
from megatron_most.plan.weights import tensors_of
from megatron_most.runtime import Device, Ranks
from tests.harness import run_ranks


def saved(ranks: Ranks, folder: Path) -> tuple[int, int, int, int]:
    """(bytes, files) that are there, and those said."""
    changes = {"layout.expert": 2, "train.global_batch_size": 2, "train.micro_batch_size": 1}
    plan = make_plan(replace(load_recipe("most-tiny"), changes), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        assert plan.moe is not None
        saver = Saver(Shelf(folder), find_pieces(model, plan.moe), None, keep=1, versions={})
        engine = make_engine(model, plan, session.groups)
        engine.step([synthetic_batch(plan.tokens, ["mixed"], 32, seed=1, first=ranks.rank)], 1e-3)
        texts = {"resolved.toml": dump(plan.config), "token_map.json": plan.tokens.to_json()}
        saver.write(saver.snapshot(1, engine.state(), {}, texts))
        saver.wait()
    files = list((folder / "step-00000001").iterdir())
    storage = storage_of(plan, tensors_of(plan))
    return sum(file.stat().st_size for file in files), len(files), storage.checkpoint, storage.files


def test_a_checkpoint_takes_the_room_and_files_that_were_told(tmp_path: Path) -> None:
    size, files, said_size, said_files = run_ranks(saved, 2, tmp_path)[0]
    assert files == said_files
    assert abs(said_size - size) < 0.05 * size


@pytest.mark.parametrize(("every", "keep", "kept"), [(10, 3, 4), (10, 0, 10), (0, 3, 1), (60, 3, 2)])
def test_keeping_takes_one_more_while_the_next_is_written(every: int, keep: int, kept: int) -> None:
    changes = {"train.steps": 100, "checkpoint.every": every, "checkpoint.keep": keep}
    plan = make_plan(replace(load_recipe("most-tiny"), changes), 1, Device("cpu"))
    assert storage_of(plan, tensors_of(plan)).kept == kept
