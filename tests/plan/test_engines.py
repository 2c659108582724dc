"""Weights, gradients and optimizer state by the plan are those that real engines hold, in bytes of their storages;
so is the most that a whole step ever has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from megatron_most.config import Plan, load_recipe, logits, replace
from megatron_most.data import PackedBatch, pack_rows, synthetic_batch
from megatron_most.data.synthetic import synthetic_document
from megatron_most.engine import PlainEngine, Session, ZeroEngine, make_engine, make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.plan.memory import memory_of, state_of
from megatron_most.plan.weights import held_by_stage, tensors_of
from megatron_most.runtime import Ranks
from tests.harness import run_ranks
from tests.plan.live_bytes import LiveBytes

BF16, FULL = {"engine.precision": "bf16"}, {"recompute.granularity": "full"}
TENSOR, EXPERT, STAGES = {"layout.tensor": 2}, {"layout.expert": 2}, {"layout.pipeline": 2}
SMALL = {"train.sequence_length": 32, "train.micro_batch_size": 1, "train.global_batch_size": 4, "model.num_layers": 2}


OFFLOAD = {"engine.offload_optimizer": True}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    """With buckets that are small beside the model, as they are beside a large one."""
    buckets = {"deepspeed.zero_optimization.reduce_bucket_size": 2000}
    return {"engine.kind": "deepspeed", "engine.zero_stage": stage, **buckets, **more}


CASES: dict[int, dict[str, dict[str, Any]]] = {
    1: {"plain": {}, "plain bf16": BF16, "dense bf16": {**BF16, "name": "most-tiny-dense"}},
    2: {
        "plain bf16, EP": {**BF16, **EXPERT},
        "plain, PP": STAGES,
        "ZeRO-0": zero(0),
        "ZeRO-0 bf16": zero(0, **BF16),
        "ZeRO-1": zero(1),
        "ZeRO-1 bf16, EP": zero(1, **BF16, **EXPERT),
        "ZeRO-2": zero(2),
        "ZeRO-2 bf16": zero(2, **BF16),
        "ZeRO-3 bf16, EP": zero(3, **BF16, **EXPERT),
        "ZeRO-1 offloaded": zero(1, **OFFLOAD),
        "ZeRO-1 bf16, offloaded": zero(1, **BF16, **OFFLOAD),
        "ZeRO-2 bf16, offloaded": zero(2, **BF16, **OFFLOAD),
        "ZeRO-2 bf16, one micro-batch, offloaded": zero(2, **BF16, **OFFLOAD, **{"train.global_batch_size": 2}),
        "ZeRO-2 EP, offloaded": zero(2, **OFFLOAD, **EXPERT),
        "ZeRO-3 bf16, offloaded": zero(3, **BF16, **OFFLOAD),
    },
    4: {
        "ZeRO-1 bf16, TP EP PP": zero(1, **BF16, **STAGES, **TENSOR, **EXPERT, **{"model.num_layers": 4}),
        "ZeRO-2 bf16, DP TP EP": zero(2, **BF16, **TENSOR, **EXPERT),
        "ZeRO-3, DP TP EP": zero(3, **TENSOR, **EXPERT),
    },
}


def bytes_of(tensors: Iterable[torch.Tensor | None], known: set[int]) -> int:
    """Of their storages, those known apart; they are known then."""
    total = 0
    for tensor in tensors:
        if tensor is not None and tensor.untyped_storage().nbytes():
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                total += storage.nbytes()
    return total


def batches_of(plan: Plan, session: Session) -> list[PackedBatch]:
    rows = range(session.groups.data.rank(), plan.config.train.global_batch_size, session.groups.data.size())
    return [synthetic_batch(plan.tokens, ["mixed"], 32, seed=1, first=row) for row in rows]


def gradients_of(engine: PlainEngine | ZeroEngine) -> Iterator[torch.Tensor | None]:
    """Wherever engines keep them between two micro-batches."""
    for weight in engine.model.parameters():
        yield weight.grad
        yield getattr(weight, "grad_accum", None)
    if engine.whole is not None:
        yield from (master.grad for master in engine.whole.masters)
        return
    optimizer = engine.engine.optimizer
    yield getattr(optimizer, "temp_grad_buffer_for_gpu_offload", None)  # where an offloaded one sums each tensor's
    for name in ("averaged_gradients", "all_grad_tensors", "_preflattened_grad_partitions"):
        for kept in (getattr(optimizer, name, None) or {}).values():
            yield from kept if isinstance(kept, list) else [kept]
    yield getattr(optimizer, "grads_in_partition", None)
    if not engine.plan.config.engine.offload_optimizer:
        yield getattr(optimizer, "grad_partitions_flat_buffer", None)


def on_the_host(engine: ZeroEngine) -> Iterator[torch.Tensor | None]:
    """What an offloaded optimizer keeps in the node's memory, besides masters and moments."""
    optimizer = engine.engine.optimizer
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        yield from (master.grad for master in getattr(optimizer, name, []))
    yield from getattr(optimizer, "param_buffer_of_bit16_for_cpu_offload_groups", [])
    yield from getattr(optimizer, "accumulated_grads_in_cpu", {}).values()
    yield getattr(optimizer, "temp_grad_buffer_for_cpu_offload", None)
    yield getattr(optimizer, "grad_partitions_flat_buffer", None)


def held(ranks: Ranks, cases: dict[str, dict[str, Any]]) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """By case (bytes found, bytes said) of this rank, in the second step, for moments come with the first."""
    out = {}
    for case, changes in cases.items():
        name = changes.get("name", "most-tiny")
        config = replace(load_recipe(name), {**SMALL, **{k: v for k, v in changes.items() if k != "name"}})
        plan = make_plan(config, ranks.world_size, ranks.device)
        with open_groups(plan, ranks) as session:
            engine: Any = make_engine(build_model(plan, session.groups), plan, session.groups)
            found = dict.fromkeys(("weights", "optimizer", "gradients", "host"), 0)
            look = on_step(engine, found)
            for _ in range(2):
                engine.step(batches_of(plan, session), 1e-3, lap=look)
            stage = session.groups.stages.rank()
        said = state_of(plan, held_by_stage(plan, tensors_of(plan))[stage])
        out[case] = found, {part: getattr(said, part) for part in found}
    return out


def on_step(engine: Any, found: dict[str, int]) -> Any:
    """Looks when micro-batches are through, and under ZeRO after each of them: the most of each part."""

    def look(name: str = "forward_backward") -> None:
        if name != "forward_backward" or not engine.updates:
            return
        known: set[int] = set()
        weights = list(engine.model.parameters())
        sizes = {"weights": bytes_of((getattr(weight, "ds_tensor", weight) for weight in weights), known)}
        bytes_of(weights, known)  # ZeRO-3 has some of them whole for the while
        inner = engine.engine.optimizer.optimizer if engine.whole is None else engine.whole.optimizer
        masters = [weight for group in inner.param_groups for weight in group["params"]]
        if engine.whole is None:
            for kept in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
                masters += getattr(engine.engine.optimizer, kept, [])
        state = (x for named in inner.state.values() for x in named.values() if torch.is_tensor(x))
        sizes["optimizer"], sizes["host"] = bytes_of([*masters, *state], known), 0
        if isinstance(engine, ZeroEngine) and engine.plan.config.engine.offload_optimizer:
            sizes["host"] = sizes["optimizer"] + bytes_of(on_the_host(engine), known)
            sizes["optimizer"] = 0
        sizes["gradients"] = bytes_of(gradients_of(engine), known)
        for part, size in sizes.items():
            found[part] = max(found[part], size)

    if isinstance(engine, ZeroEngine):
        backward = engine.engine.backward

        def looking_backward(*args: Any, **kwargs: Any) -> Any:
            out = backward(*args, **kwargs)
            look()
            return out

        engine.engine.backward = looking_backward
    return look


@pytest.mark.parametrize("world", CASES)
def test_engines_hold_what_the_plan_says(world: int) -> None:
    ranks = run_ranks(held, world, CASES[world])
    wrong = [
        f"{case}, {part}: {said[part]:,.0f} said, {size:,.0f} found"
        for case in CASES[world]
        for found, said in (rank[case] for rank in ranks)
        for part, size in found.items()
        if said[part] != pytest.approx(size, rel=0.1)
    ]
    assert not wrong, "\n".join(wrong)


LARGE = {"tokens.num_units": 6000}
PEAKS = {
    "most-tiny": {},
    "most-tiny bf16": BF16,
    "most-tiny all again": FULL,
    "most-tiny logits in pieces": LARGE,
    "most-tiny logits in pieces, bf16": {**LARGE, **BF16},
    "most-tiny logits in pieces, all again": {**LARGE, **FULL},
    "most-tiny-dense": {},
    "most-tiny-upcycled bf16": BF16,
    "most-tiny-upcycled all again, bf16": {**FULL, **BF16},
}


def most(ranks: Ranks) -> dict[str, tuple[float, float]]:
    """By case (bytes that a step had at most, bytes said) of a plain engine."""
    out = {}
    logits.LOGITS_BYTES = 1  # a vocabulary of more than logits.LEAST_COLUMNS is cut, which is LARGE alone
    for case, changes in PEAKS.items():
        rows = {"train.sequence_length": 256, "train.global_batch_size": 4, "train.micro_batch_size": 4}
        plan = make_plan(replace(load_recipe(case.split()[0]), {**rows, **changes}), 1, ranks.device)
        with open_groups(plan, ranks) as session:
            model = build_model(plan, session.groups)
            engine = PlainEngine(model, plan, session.groups)
            halves = [synthetic_document(plan.tokens, kind, 129, 1, at) for at, kind in enumerate(("text", "audio"))]
            batch = [pack_rows([halves] * 4, 256, plan.tokens)]
            engine.step(batch, 1e-3)
            live = LiveBytes()
            live.know([*model.parameters(), *model.buffers(), *engine.whole.masters])
            live.know(x for named in engine.whole.optimizer.state.values() for x in named.values())
            live.know(w.grad for w in engine.whole.masters if w.grad is not None and w not in set(engine.weights))
            with live:
                engine.step(batch, 1e-3)
        said = memory_of(plan, held_by_stage(plan, tensors_of(plan)), reserve=0.0, imbalance=1.0, micro_batches=1)
        out[case] = live.most, said.total
    return out


def test_the_most_that_a_step_ever_has_is_what_the_plan_says() -> None:
    (cases,) = run_ranks(most, 1)
    for case, (found, said) in cases.items():
        assert said == pytest.approx(found, rel=0.1), (case, said / found)
