"""Telemetry against plain counting over the oracle's choices: counted once a token, on any ranks, in full precision."""

# T tokens, E routed experts

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from megatron_most.config import load_recipe, replace
from megatron_most.data import synthetic_batch
from megatron_most.engine import make_plan, open_groups, run_micro_batches
from megatron_most.model import build_model
from megatron_most.moe import LayerTelemetry, collect, measure_closely, routers
from megatron_most.runtime import Ranks
from megatron_most.vocab import TAG_NAMES
from tests.harness import run_ranks
from tests.moe.tiny import (
    INTERLEAVED,
    Case,
    draw_case,
    lines,
    moe_plan,
    open_layer,
    oracle_gate,
    oracle_groups,
    part_of_case,
    planes_of,
    run_router,
)
from tests.oracles import mamoe

CASES = [draw_case(31), draw_case(32, ["aaat___", "wwwaaaa", "_______"])]
SPARSE = [draw_case(33, ["tawww", "ww___"])]  # fewer choices than experts
TEXT_ONLY = [draw_case(34, ["tttw", "tt__"])]


def look(ranks: Ranks, cases: list[Case], gate: str, layout: dict[str, Any]) -> tuple[LayerTelemetry, LayerTelemetry]:
    """One look after all micro-batches, and one right after it."""
    changes = {"moe.groups": lines(INTERLEAVED), "moe.gate": gate, "moe.aux_loss": "group", **layout}
    with open_layer(ranks, changes) as (_, groups, layer):
        with torch.no_grad():
            layer.router.weight.copy_(cases[0].router_ED)
        for case in cases:
            run_router(layer.router, *part_of_case(case, groups))
            with torch.no_grad():
                run_router(layer.router, *part_of_case(case, groups))
        (first,), (second,) = (collect(routers(layer), groups.tokens, groups.stages) for _ in range(2))
        return first, second


def check(seen: LayerTelemetry, cases: list[Case], gate: str) -> None:
    """Every number again, by plain counting."""
    plan = moe_plan(INTERLEAVED, gate=gate)
    groups = oracle_groups(plan)
    load, tags = [0] * 8, [0] * len(TAG_NAMES)
    balance, filled = 0.0, 0
    masses: dict[int, list[float]] = {tag: [] for tag in groups}
    entropies: dict[int, list[float]] = {tag: [] for tag in groups}
    for case in cases:
        logits_TE = mamoe.router_logits(case.x_SBD.flatten(0, 1), cases[0].router_ED)
        _, chosen_TE, _ = mamoe.gate(logits_TE, case.tags_T, groups, **oracle_gate(plan))
        where = {"pad_T": case.is_pad_T, "sequence_T": case.sequence_T, "shared_only": plan.shared_only}
        mean = mamoe.group_aux_loss(logits_TE, chosen_TE, case.tags_T, groups, top_k=2, scope="sequence", **where)
        balance += mean.item() * case.tags_BS.size(0)
        counted_BS = ~case.is_pad_BS & torch.isin(case.tags_BS, torch.tensor(sorted(groups)))
        filled += int(counted_BS.any(-1).sum())
        for t, tag in enumerate(case.tags_T.tolist()):
            if case.is_pad_T[t]:
                continue
            tags[tag] += 1
            if tag in groups:
                load = [n + int(chosen) for n, chosen in zip(load, chosen_TE[t], strict=True)]
                masses[tag].append(logits_TE[t].softmax(-1)[groups[tag]].sum().item())
                p = logits_TE[t, groups[tag]].softmax(-1).tolist()
                entropies[tag].append(-sum(x * math.log(x) for x in p) / math.log(len(p)))
    assert seen.layer == 1 and seen.load == tuple(load)
    assert seen.tokens_per_tag == dict(zip(TAG_NAMES, tags, strict=True))
    assert seen.balance_loss == pytest.approx(balance / filled, rel=1e-5)
    for tag, group in enumerate(seen.groups):
        own, count = [load[e] for e in groups[tag]], len(masses[tag])
        assert (group.name, group.num_tokens) == (TAG_NAMES[tag], count)
        assert group.dead_experts == (tuple(e for e in groups[tag] if not load[e]) if count else ())
        assert group.load_max_over_mean == pytest.approx(max(own) / (sum(own) / len(own)) if count else 0.0, rel=1e-9)
        assert group.in_group_mass == pytest.approx(
            sum(masses[tag]) / count if count else 0.0, rel=1e-5
        )  # float32 softmax
        assert group.entropy == pytest.approx(sum(entropies[tag]) / count if count else 0.0, rel=1e-5)


@pytest.mark.parametrize("gate", ["masked_softmax", "reference"])
def test_a_look_gives_the_counts_of_all_micro_batches_and_the_next_one_nothing(gate: str) -> None:
    ((seen, again),) = run_ranks(look, 1, CASES, gate, {})
    check(seen, CASES, gate)
    assert set(again.load) == {0} and set(again.tokens_per_tag.values()) == {0} and again.balance_loss == 0
    assert all(
        (g.num_tokens, g.load_max_over_mean, g.in_group_mass, g.entropy, g.dead_experts) == (0, 0, 0, 0, ())
        for g in again.groups
    )


def look_seldom(ranks: Ranks, cases: list[Case]) -> LayerTelemetry:
    """One look after micro-batches of which the last alone is measured closely."""
    with open_layer(ranks, {"moe.groups": lines(INTERLEAVED), "moe.aux_loss": "group"}) as (_, groups, layer):
        with torch.no_grad():
            layer.router.weight.copy_(CASES[0].router_ED)
        for case in cases:
            measure_closely(routers(layer), case is cases[-1])
            run_router(layer.router, *part_of_case(case, groups))
        return collect(routers(layer), groups.tokens, groups.stages)[0]


def test_between_looks_loads_are_counted_and_mass_and_entropy_are_not() -> None:
    ((every,), (last,)) = (run_ranks(look_seldom, 1, cases) for cases in (CASES, CASES[-1:]))
    ((whole, _),) = run_ranks(look, 1, CASES, "masked_softmax", {})
    assert (every.load, every.tokens_per_tag, every.balance_loss) == (
        whole.load, whole.tokens_per_tag, whole.balance_loss,
    )  # fmt: skip
    for seen, of_last, of_all in zip(every.groups, last.groups, whole.groups, strict=True):
        assert (seen.num_tokens, seen.dead_experts) == (of_all.num_tokens, of_all.dead_experts)
        assert (seen.in_group_mass, seen.entropy) == (of_last.in_group_mass, of_last.entropy)
        assert seen.in_group_mass != pytest.approx(of_all.in_group_mass, rel=1e-3)


def test_experts_are_dead_only_where_their_group_had_tokens() -> None:
    ((seen, _),) = run_ranks(look, 1, SPARSE, "masked_softmax", {})
    check(seen, SPARSE, "masked_softmax")
    assert [len(group.dead_experts) for group in seen.groups] == [3, 1]
    ((seen, _),) = run_ranks(look, 1, TEXT_ONLY, "masked_softmax", {})
    check(seen, TEXT_ONLY, "masked_softmax")
    assert seen.groups[1].dead_experts == () and seen.groups[1].num_tokens == 0


@pytest.mark.parametrize("layout", [{}, {"layout.tensor": 2}, {"layout.context": 2}], ids=["DP2", "TP2", "CP2"])
def test_two_ranks_see_what_one_process_sees(layout: dict[str, Any]) -> None:
    (first, _), (second, _) = run_ranks(look, 2, CASES, "masked_softmax", layout)
    assert first == second
    check(first, CASES, "masked_softmax")


# ------------------------------------------------------------------------------------------------------- whole models


def step(ranks: Ranks, changes: dict[str, Any]) -> list[tuple[LayerTelemetry, ...]]:
    """Looks after a forward pass without gradients, and after a forward and backward pass over two micro-batches."""
    config = replace(load_recipe("most-tiny"), {"train.micro_batch_size": 1, **changes})
    plan = make_plan(config, ranks.world_size, ranks.device)
    batches = [synthetic_batch(plan.tokens, ["mixed", "wave"], 32, seed=1, first=2 * i) for i in range(2)]
    with open_groups(plan, ranks) as session:
        model, groups = build_model(plan, session.groups), session.groups
        found = []
        for forward_only in (True, False):
            with torch.set_grad_enabled(not forward_only):
                run_micro_batches(model, batches, groups, forward_only=forward_only)
            found.append(collect(routers(model), groups.tokens, groups.stages))
        return found


RECOMPUTE = {
    "full": {"recompute.granularity": "full"},
    "moe": {"recompute.granularity": "selective", "recompute.modules": ["moe", "core_attn"]},
}


@pytest.fixture(scope="module")
def kept() -> tuple[LayerTelemetry, ...]:
    """Without recompute."""
    return run_ranks(step, 1, {})[0][1]


@pytest.mark.parametrize("name", RECOMPUTE)
def test_recomputed_layers_count_every_token_once(name: str, kept: tuple[LayerTelemetry, ...]) -> None:
    (_, recomputed) = run_ranks(step, 1, RECOMPUTE[name])[0]
    assert [layer.layer for layer in kept] == [1, 2, 3]
    for layer in kept:
        assert sum(layer.tokens_per_tag.values()) == 4 * 32 and layer.tokens_per_tag["wave"] > 0
        assert sum(layer.load) == 2 * (layer.tokens_per_tag["text"] + layer.tokens_per_tag["audio"])
    assert recomputed == kept


@pytest.mark.parametrize("name", [None, *RECOMPUTE], ids=str)
def test_passes_without_gradients_count_nothing(name: str | None) -> None:
    (evaluated, trained) = run_ranks(step, 1, RECOMPUTE[name] if name else {})[0]
    assert len(evaluated) == 3
    assert all(sum(layer.load) == 0 and sum(layer.tokens_per_tag.values()) == 0 for layer in evaluated)
    assert all(sum(layer.load) > 0 for layer in trained)


def test_every_rank_sees_the_layers_of_all_pipeline_stages_in_order() -> None:
    (_, first), (_, second) = run_ranks(step, 2, {"layout.pipeline": 2})
    assert first == second
    assert [layer.layer for layer in first] == [1, 2, 3]
    assert all(sum(layer.tokens_per_tag.values()) == 4 * 32 for layer in first)


# ---------------------------------------------------------------------------------------------------------- precision


def in_half(ranks: Ranks, dtype: torch.dtype) -> dict[str, Any]:
    """A router with odd constants, put in half precision, after 600 text tokens; and what a checkpoint holds of it."""
    case = draw_case(35, ["t" * 600])
    with open_layer(ranks, {"moe.bias_rate": 0.1}) as (_, _, layer):
        router = layer.router
        router.group_constant.fill_(1 / 3)
        router.expert_bias.fill_(0.1)
        layer.to(dtype)
        router(case.x_SBD.to(dtype), planes_of(case).transpose(0, 1))
        (seen,) = collect(routers(layer), None, None)
        return {"seen": seen, "saved": dict(router.state_dict()), "sums": router.sums.sums.dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_model_keeps_its_sums_constants_and_biases_whole(dtype: torch.dtype) -> None:
    (found,) = run_ranks(in_half, 1, dtype)
    saved = {name: value for name, value in found["saved"].items() if torch.is_tensor(value)}
    assert set(saved) == {"weight", "group_constant", "expert_bias"}  # no sums, no tables
    assert saved["weight"].dtype == dtype
    assert torch.equal(saved["group_constant"], torch.full((2,), 1 / 3))
    assert torch.equal(saved["expert_bias"], torch.full((8,), 0.1))
    assert found["sums"] == torch.float64
    assert found["seen"].tokens_per_tag["text"] == 600  # a bfloat16 sum stops at 256
    assert sum(found["seen"].load) == 1200
