"""First weights: what is replicated starts equal, and nothing else does; and filler rows of pads change no step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.config import ExpertLoad, load_recipe, replace
from megatron_most.engine import PlainEngine, make_engine, make_plan, open_groups
from megatron_most.errors import LayoutError
from megatron_most.model import build_model
from megatron_most.runtime import Ranks
from megatron_most.train import synthetic_steps
from tests.engine.test_bad_input import with_wave
from tests.harness import run_ranks
from tests.weights import named_weights


@pytest.mark.parametrize(
    "sizes", [{"expert": 2}, {"pipeline": 2, "expert": 2}, {"tensor": 2, "expert": 2}, {"context": 2}]
)
def test_replicas_start_equal_and_everything_else_different(sizes: dict[str, int]) -> None:
    world_size = 4 if len(sizes) == 2 and "pipeline" in sizes else 2
    started: dict[str, bytes] = {}
    for rank in run_ranks(first_weights, world_size, {f"layout.{name}": size for name, size in sizes.items()}):
        for name, content in rank.items():
            assert started.setdefault(name, content) == content, f"{name} starts different on two ranks"
    assert len(set(started.values())) == len(started)


def first_weights(ranks: Ranks, sizes: dict[str, Any]) -> dict[str, bytes]:
    plan = make_plan(replace(load_recipe("most-tiny"), sizes), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        matrices = ((n, w) for n, w in named_weights(model, plan, session.groups) if w.ndim > 1)
        cut = {n: w for n, w in matrices if not getattr(w, "tensor_model_parallel", False) or "local_experts" in n}
        return {name: weight.detach().numpy().tobytes() for name, weight in cut.items()}


def test_a_global_batch_that_ranks_do_not_divide_is_filled_up_and_costs_the_same() -> None:
    changes = {"train.global_batch_size": 6, "train.micro_batch_size": 1, "train.epsilon": 1e-5}
    [alone] = run_ranks(three_steps, 1, changes)
    for rank in run_ranks(three_steps, 4, changes):  # 4 ranks, 2 micro-batches each, two of them pads
        assert rank == [pytest.approx(step, rel=1e-5) for step in alone]


def three_steps(ranks: Ranks, changes: dict[str, Any]) -> list[tuple[float, float]]:
    plan = make_plan(
        replace(load_recipe("most-tiny"), {"model.init_std": 0.0, "model.num_layers": 2, **changes}),
        ranks.world_size,
        ranks.device,
    )
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        draw = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            weight.data.normal_(0, 0.2, generator=draw) if weight.ndim > 1 else weight.data.fill_(1)
        engine, batches_of = PlainEngine(model, plan, session.groups), synthetic_steps(plan, session.groups)
        reports = [engine.step(batches_of(step), 5e-4) for step in range(3)]
        return [(report.loss, report.gradient_norm) for report in reports]


@pytest.mark.parametrize("stage", [1, 2])
def test_continuous_features_on_one_rank_only_do_not_part_the_ranks_of_zero(stage: int) -> None:
    changes = {"model.wave_size": 6, "train.global_batch_size": 2, "train.micro_batch_size": 1}
    plain = run_ranks(step_with_wave_on_rank_1, 2, {**changes, "engine.kind": "plain"})
    zero = run_ranks(step_with_wave_on_rank_1, 2, {**changes, "engine.kind": "deepspeed", "engine.zero_stage": stage})
    assert zero == [pytest.approx(step, rel=1e-5) for step in plain]


def step_with_wave_on_rank_1(ranks: Ranks, changes: dict[str, Any]) -> tuple[float, float]:
    plan = make_plan(
        replace(load_recipe("most-tiny"), {"model.num_layers": 2, **changes}), ranks.world_size, ranks.device
    )
    with open_groups(plan, ranks) as session:
        engine = make_engine(build_model(plan, session.groups), plan, session.groups)
        [batch] = synthetic_steps(plan, session.groups)(0)
        report = engine.step([with_wave(batch) if ranks.rank == 1 else batch], 5e-4)
        return report.loss, report.gradient_norm


def deal_differently(ranks: Ranks, folder: Path) -> str:
    """Each rank reads loads of its own."""
    loads = (90, 10, 20, 80, 90, 10, 20, 80) if ranks.rank else (90, 80, 10, 20, 90, 80, 10, 20)
    file = folder / str(ranks.rank) / "expert_load.json"
    file.parent.mkdir()
    groups = {"text": (0, 1, 2, 3), "audio": (4, 5, 6, 7)}
    file.write_text(ExpertLoad(step=1, groups=groups, layers={1: loads}).to_json())
    changes = {"model.num_layers": 2, "layout.expert": 2, "moe.load_file": str(file), "train.micro_batch_size": 1}
    plan = make_plan(replace(load_recipe("most-tiny"), changes), ranks.world_size, ranks.device)
    with pytest.raises(LayoutError, match=r"moe\.load_file.*not the same file for all ranks"), open_groups(plan, ranks):
        pass
    return str(plan.moe.slots(1)) if plan.moe else ""


def test_ranks_that_were_dealt_by_other_loads_do_not_start(tmp_path: Path) -> None:
    first, second = run_ranks(deal_differently, 2, tmp_path)
    assert first != second
