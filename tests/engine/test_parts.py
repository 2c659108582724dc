"""What a step tells by task and by part of the model, against sums made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from megatron_most.config import load_recipe, replace
from megatron_most.data import MAX_TASKS, check_batch, pack_rows, synthetic_document
from megatron_most.engine import Engine, ZeroEngine, make_engine, make_plan, open_groups
from megatron_most.errors import DataError
from megatron_most.model import build_model, part_names
from megatron_most.moe import routers
from megatron_most.runtime import CPU_BACKEND, GPU_BACKEND, Ranks
from tests.engine.test_layouts import depth
from tests.harness import run_ranks

DOCUMENTS = ((("mixed", 9, 4), ("audio", 8, 0)), (("text", 12, -1), ("wave", 6, 4)))  # kind, length, task of two rows


def open_engine(ranks: Ranks, session: Any) -> Engine:
    model = build_model(session.plan, session.groups, ranks.device.torch_device)
    return make_engine(model, session.plan, session.groups)


def batches_of(plan: Any) -> list[Any]:
    made = []
    for row in DOCUMENTS:
        documents = [synthetic_document(plan.tokens, kind, length, 3, length) for kind, length, _ in row]
        made.append(pack_rows([documents], 32, plan.tokens, [[task for _, _, task in row]]))
    return made


def by_hand(ranks: Ranks) -> tuple[Any, dict[int, float], Any]:
    """One step's report, and the mean losses of each task from the loss of every token alone."""
    config = replace(load_recipe("most-tiny"), {"train.micro_batch_size": 1, "train.sequence_length": 32, **depth({})})
    plan = make_plan(config, 1, ranks.device)
    with open_groups(plan, ranks) as session:
        engine, batches = open_engine(ranks, session), batches_of(plan)
        sums: dict[int, list[float]] = {}
        with torch.no_grad():
            for batch in batches:
                for loss, weight, task in zip(
                    engine.model(batch)[0].tolist(), batch.loss_weights_BS[0].tolist(), batch.tasks_BS[0].tolist(),
                    strict=True,
                ):  # fmt: skip
                    if weight:
                        sums.setdefault(task, []).append(loss)
        evaluated = engine.evaluate(batches).task_means
        report = engine.step(batches, 1e-3)
        return report, {task: sum(losses) / len(losses) for task, losses in sums.items()}, evaluated


def test_losses_by_task_are_the_means_of_their_documents_tokens() -> None:
    ((report, wanted, evaluated),) = run_ranks(by_hand, 1)
    assert set(wanted) == {-1, 0, 4}
    assert report.task_losses == pytest.approx(wanted, rel=1e-5)  # float32 losses, sums in another order
    assert evaluated == pytest.approx(wanted, rel=1e-5)
    assert report.norms == {}  # nobody asked
    assert len({round(loss, 3) for loss in wanted.values()}) == 3  # a mix-up of tasks would show


def shifts(ranks: Ranks, kind: str) -> list[float]:
    """How far a bias on the choice moves in a step at the whole rate, and in one at a quarter of it."""
    changes = {"train.micro_batch_size": 1, "train.sequence_length": 32, "moe.bias_rate": 0.01, **depth({}),
               "engine.kind": kind, "engine.zero_stage": 1}  # fmt: skip
    plan = make_plan(replace(load_recipe("most-tiny"), changes), 1, ranks.device)
    with open_groups(plan, ranks) as session:
        engine, batches, found = open_engine(ranks, session), batches_of(plan), []
        for share in (1.0, 0.25):
            before = [router.expert_bias.clone() for router in routers(engine.model)]
            engine.step(batches, share * plan.config.train.learning_rate)
            after = [router.expert_bias for router in routers(engine.model)]
            moved = zip(before, after, strict=True)
            found.append(max(float((one - other).abs().max()) for one, other in moved))
        return found


@pytest.mark.parametrize("kind", ["plain", "deepspeed"])
def test_biases_on_the_choice_move_less_as_the_learning_rate_falls(kind: str) -> None:
    [found] = run_ranks(shifts, 1, kind)
    assert found == pytest.approx([0.01, 0.0025], rel=1e-5)


def too_many(ranks: Ranks) -> str:
    plan = make_plan(load_recipe("most-tiny"), 1, ranks.device)
    batch = batches_of(plan)[0]
    batch = dataclasses.replace(batch, tasks_BS=torch.where(batch.tasks_BS == 4, MAX_TASKS, batch.tasks_BS))
    with pytest.raises(DataError) as caught:
        check_batch(batch, plan)
    return str(caught.value)


def test_a_task_beyond_those_that_losses_are_kept_for_is_refused() -> None:
    assert run_ranks(too_many, 1) == ["row 0, token 0: task 15, but losses are kept for tasks 0..14"]


# Every way in which an engine holds its gradients: the parts must add up to the norm that it clips by.
ENGINES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "plain bf16": (1, "most-tiny", {"engine.precision": "bf16"}),
    "plain EP2 striped": (2, "most-tiny", {"layout.expert": 2, "moe.placement": "striped"}),
    "ZeRO-1 bf16": (2, "most-tiny", {"engine.zero_stage": 1, "engine.precision": "bf16", "layout.expert": 2}),
    "ZeRO-2 bf16": (2, "most-tiny", {"engine.zero_stage": 2, "engine.precision": "bf16"}),
    "ZeRO-2 fp16": (1, "most-tiny", {"engine.zero_stage": 2, "engine.precision": "fp16"}),
    "ZeRO-2 offload": (2, "most-tiny", {"engine.zero_stage": 2, "engine.offload_optimizer": True}),
    "ZeRO-3 bf16": (2, "most-tiny", {"engine.zero_stage": 3, "engine.precision": "bf16", "layout.expert": 2}),
    "ZeRO-3 offload": (2, "most-tiny", {"engine.zero_stage": 3, "engine.offload_optimizer": True}),
    "ZeRO-1 tied": (
        2,
        "most-tiny-upcycled",
        {"engine.zero_stage": 1, "layout.pipeline": 2, "train.global_batch_size": 2},
    ),
}


def parts_and_whole(ranks: Ranks, recipe: str, changes: dict[str, Any]) -> tuple[Any, ...]:
    kind = "deepspeed" if "engine.zero_stage" in changes else "plain"
    common = {"train.micro_batch_size": 1, "train.global_batch_size": 2 * ranks.world_size, "engine.kind": kind}
    config = replace(load_recipe(recipe), {"train.sequence_length": 32, **depth(changes), **common, **changes})
    plan = make_plan(config, ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        engine = open_engine(ranks, session)
        reports = [engine.step(batches_of(plan)[: plan.micro_batches], 1e-3, look=True) for _ in range(3)]
        return part_names(plan), isinstance(engine, ZeroEngine), reports


ON_GPU = {"ZeRO-2 fp16"}  # DeepSpeed refuses it on a CPU


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.gpu) if n in ON_GPU else n for n in ENGINES])
def test_the_norms_of_the_parts_add_up_to_the_norm_that_is_clipped_by(name: str) -> None:
    world_size, recipe, changes = ENGINES[name]
    backend = GPU_BACKEND if name in ON_GPU else CPU_BACKEND
    for parts, is_zero, reports in run_ranks(parts_and_whole, world_size, recipe, changes, backend=backend):
        assert is_zero == name.startswith("ZeRO")
        taken = [report for report in reports if not report.is_skipped]
        assert len(taken) >= (1 if "fp16" in name else 3)  # fp16 begins with a loss scale that is too high
        for report in taken:
            assert tuple(report.norms) == parts and min(report.norms.values()) > 0
            together = sum(norm**2 for norm in report.norms.values()) ** 0.5
            assert together == pytest.approx(report.gradient_norm, rel=1e-5)
