"""Both gates against the float64 oracle: who is chosen, with which weights, and the gradients behind them.

`choose` keeps the precision of its logits, so most comparisons are float64 against float64 and leave no room for a
wrong rule. What float32 adds (rounding, underflow) has tests of its own.
"""

# T tokens, E routed experts, K experts per token

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_most.config import MoEPlan
from megatron_most.moe.gates import Choice, choose, in_group_softmax
from megatron_most.moe.groups import GroupTables
from tests.moe.tiny import (
    AUDIO,
    HALVES,
    INTERLEAVED,
    TEXT,
    VANILLA,
    WAVE,
    difference,
    moe_plan,
    oracle_gate,
    oracle_groups,
)
from tests.oracles import mamoe

GATES = ("masked_softmax", "reference")
TAGS_T = torch.tensor([TEXT, AUDIO, AUDIO, WAVE, TEXT, TEXT, WAVE, AUDIO, TEXT])
NAMES = {1: ["text+audio+wave"], 2: ["text", "audio"], 3: ["text", "audio", "wave"]}


def run(
    plan: MoEPlan,
    logits_TE: torch.Tensor,
    tags_T: torch.Tensor,
    constants: list[float] | None = None,
    bias_E: Any = None,
) -> Choice:
    """choose() with the tables a router would give it."""
    tables = GroupTables(plan)
    constant_T = None
    if constants is not None:
        constant_T = torch.tensor(constants, dtype=logits_TE.dtype)[tables.group_of_tag_M[tags_T]]
    return choose(logits_TE, tables.owns_ME[tags_T], constant_T, bias_E, plan)


def spread(choice: Choice, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and choices [T, E] as the oracle has them."""
    shape = (choice.experts_TK.size(0), num_experts)
    weights_TE = choice.weights_TK.new_zeros(shape).scatter(1, choice.experts_TK, choice.weights_TK)
    return weights_TE, torch.zeros(shape, dtype=torch.bool).scatter(1, choice.experts_TK, choice.is_chosen_TK)


def draw_logits(seed: int, num_tokens: int, num_experts: int, size: float = 2.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return size * torch.randn(num_tokens, num_experts, generator=draw, dtype=torch.float64)


@st.composite
def situations(draw: st.DrawFn) -> tuple[MoEPlan, list[float] | None, torch.Tensor, torch.Tensor]:
    """A plan with any partition of up to 12 experts, perhaps group constants, logits and tags."""
    num_experts, num_groups = draw(st.sampled_from([4, 6, 8, 12])), draw(st.integers(1, 3))
    owner = draw(st.lists(st.integers(0, num_groups - 1), min_size=num_experts, max_size=num_experts))
    assume(set(owner) == set(range(num_groups)))
    runs = draw(st.sampled_from([n for n in range(1, num_experts + 1) if num_experts % n == 0]))
    gate = draw(st.sampled_from(GATES))
    plan = moe_plan(
        [
            (name, tuple(e for e in range(num_experts) if owner[e] == group))
            for group, name in enumerate(NAMES[num_groups])
        ],
        gate=gate,
        top_k=draw(st.integers(1, 4)),
        normalise_top_k=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 0.3, 16.0])),
        routing_groups=runs,
        routing_groups_kept=draw(st.integers(1, runs)),
    )
    has_constants = gate == "masked_softmax" and draw(st.booleans())
    tags = draw(st.lists(st.integers(0, 2), min_size=1, max_size=8))
    logits_TE = draw_logits(draw(st.integers(0, 2**20)), len(tags), num_experts, draw(st.sampled_from([0.1, 1.0, 4.0])))
    return plan, [0.5, 0.25, 3.0][:num_groups] if has_constants else None, logits_TE, torch.tensor(tags)


@settings(deadline=None)  # the first example warms torch up
@given(situations())
def test_choices_weights_and_gradients_are_the_oracles(situation: Any) -> None:
    plan, constants, logits_TE, tags_T = situation
    ours_TE, theirs_TE = logits_TE.clone().requires_grad_(), logits_TE.clone().requires_grad_()
    weights_TE, chosen_TE = spread(run(plan, ours_TE, tags_T, constants), plan.num_experts)
    expected_TE, expected_choice_TE, _ = mamoe.gate(
        theirs_TE, tags_T, oracle_groups(plan), **oracle_gate(plan, constants)
    )
    assert torch.equal(chosen_TE, expected_choice_TE)
    assert difference(weights_TE, expected_TE) < 1e-10  # float64 on both sides
    functional_TE = draw_logits(1, *logits_TE.shape)
    (weights_TE * functional_TE).sum().backward()
    (expected_TE * functional_TE).sum().backward()
    assert torch.allclose(ours_TE.grad, theirs_TE.grad, rtol=1e-10, atol=1e-12 * plan.scale)


@pytest.mark.parametrize("groups", [HALVES, INTERLEAVED, VANILLA], ids=["halves", "interleaved", "vanilla"])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("gate", GATES)
def test_float32_chooses_the_oracles_experts_and_weighs_them_to_1e_5(
    gate: str, normalise: bool, top_k: int, groups: Any
) -> None:
    plan = moe_plan(groups, gate=gate, normalise_top_k=normalise, top_k=top_k, scale=1.5)
    tags_T = TAGS_T.repeat(8)
    logits_TE = draw_logits(2, len(tags_T), plan.num_experts).float()
    ours_TE, theirs_TE = logits_TE.clone().requires_grad_(), logits_TE.double().requires_grad_()
    weights_TE, chosen_TE = spread(run(plan, ours_TE, tags_T), plan.num_experts)
    expected_TE, expected_choice_TE, scores_TE = mamoe.gate(theirs_TE, tags_T, oracle_groups(plan), **oracle_gate(plan))
    best_TE = scores_TE.sort(dim=-1, descending=True).values
    is_clear_T = ~scores_TE.any(-1) | (best_TE[:, top_k - 1] - best_TE[:, top_k] > 1e-6)
    assert bool(is_clear_T.all())  # or the seed is a bad one
    assert torch.equal(chosen_TE, expected_choice_TE)
    assert difference(weights_TE, expected_TE) < 1e-5
    functional_TE = draw_logits(3, *logits_TE.shape)
    (weights_TE * functional_TE).sum().backward()
    (expected_TE * functional_TE).sum().backward()
    assert difference(ours_TE.grad, theirs_TE.grad) < 1e-5


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("gate", GATES)
def test_one_group_for_all_tags_is_an_ordinary_router(gate: str, top_k: int) -> None:
    plan, logits_TE = moe_plan(VANILLA, gate=gate, top_k=top_k), draw_logits(4, len(TAGS_T), 8)
    choice, stock = run(plan, logits_TE, TAGS_T), logits_TE.softmax(-1).topk(top_k)
    assert torch.equal(choice.experts_TK, stock.indices)
    assert difference(choice.weights_TK, stock.values) < 1e-12


@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("gate", GATES)
def test_an_underflowed_own_score_never_loses_to_a_foreign_expert(gate: str, normalise: bool) -> None:
    plan = moe_plan(INTERLEAVED, gate=gate, normalise_top_k=normalise, top_k=3, routing_groups=4, routing_groups_kept=4)
    tables, logits_TE = GroupTables(plan), draw_logits(5, len(TAGS_T), 8).float()
    logits_TE = (
        logits_TE + 1000.0 * ~tables.owns_ME[TAGS_T]
    ).requires_grad_()  # e^-1000 is 0 in float32 and in float64
    weights_TE, chosen_TE = spread(run(plan, logits_TE, TAGS_T), 8)
    assert not (chosen_TE & ~tables.owns_ME[TAGS_T]).any()
    assert chosen_TE.sum(-1).tolist() == [0 if tag == WAVE else 3 for tag in TAGS_T.tolist()]
    sums_T = weights_TE.sum(-1)
    if gate == "reference":
        assert not weights_TE.any()  # their mass did underflow: nothing is made of nothing
    else:
        assert bool((sums_T[TAGS_T == AUDIO] > 0.99).all())  # all three of the group
    weights_TE.sum().backward()
    assert bool(logits_TE.grad.isfinite().all())


@pytest.mark.parametrize("gate", GATES)
def test_runs_are_ranked_by_foreign_experts_too_under_reference_only(gate: str) -> None:
    """Run 1 holds the best expert of all, a foreign one; run 0 holds the best of the token's own."""
    plan = moe_plan(
        (("text", (0, 2, 4, 6)), ("audio", (1, 3, 5, 7))), gate=gate, top_k=1, routing_groups=4, routing_groups_kept=1
    )
    logits_TE = torch.tensor([[2.0, 0.0, 1.0, 9.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    choice = run(plan, logits_TE, torch.tensor([TEXT]))
    assert choice.experts_TK.tolist() == [[2 if gate == "reference" else 0]]
    weights_TE, _, _ = mamoe.gate(logits_TE, torch.tensor([TEXT]), oracle_groups(plan), **oracle_gate(plan))
    assert difference(spread(choice, 8)[0], weights_TE) < 1e-12


@pytest.mark.parametrize("gate", GATES)
def test_a_kept_run_with_too_few_own_experts_leaves_slots_empty(gate: str) -> None:
    plan = moe_plan(INTERLEAVED, gate=gate, top_k=2, routing_groups=4, routing_groups_kept=1)
    choice = run(plan, draw_logits(6, 6, 8), torch.full((6,), AUDIO))  # audio has one expert in each run it is in
    assert choice.is_chosen_TK.tolist() == [[True, False]] * 6
    assert bool((choice.weights_TK[:, 0] > 0).all()) and not choice.weights_TK[:, 1].any()


@pytest.mark.parametrize(
    ("gate", "top_k", "normalise", "factor"),
    [
        ("masked_softmax", 2, True, 1.5), ("masked_softmax", 2, False, 1.5), ("masked_softmax", 1, True, 1.5),
        ("reference", 2, True, 1.0), ("reference", 2, False, 1.5), ("reference", 1, True, 1.5),
    ],
)  # fmt: skip
def test_scale_multiplies_every_weight_but_the_normalised_ones_of_reference(
    gate: str, top_k: int, normalise: bool, factor: float
) -> None:
    logits_TE = draw_logits(7, len(TAGS_T), 8)
    one, scaled = (
        run(moe_plan(gate=gate, top_k=top_k, normalise_top_k=normalise, scale=scale), logits_TE, TAGS_T).weights_TK
        for scale in (1.0, 1.5)
    )
    assert difference(scaled, factor * one) < 1e-12
    sums_T = one.sum(-1)[TAGS_T != WAVE]
    assert bool(((sums_T - 1).abs() < 1e-12).all()) == (normalise and top_k > 1)  # a single expert is never normalised


def test_each_token_gets_the_constant_of_its_own_group() -> None:
    plan, logits_TE = moe_plan(INTERLEAVED, normalise_top_k=True), draw_logits(8, len(TAGS_T), 8)
    sums_T = run(plan, logits_TE, TAGS_T, [0.5, 0.125]).weights_TK.sum(-1)
    expected = {TEXT: 0.5, AUDIO: 0.125, WAVE: 0.0}
    assert sums_T.tolist() == pytest.approx([expected[tag] for tag in TAGS_T.tolist()], rel=1e-12)


def test_in_group_softmax_sums_to_1_or_0_without_a_nan_even_inside_the_backward_pass() -> None:
    owned_TE = GroupTables(moe_plan(INTERLEAVED)).owns_ME[TAGS_T]
    logits_TE = draw_logits(12, len(TAGS_T), 8, size=50.0).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # raises where a NaN is made, though it be masked afterwards
        p_TE = in_group_softmax(logits_TE, owned_TE)
        (p_TE * draw_logits(13, *p_TE.shape)).sum().backward()
    assert p_TE.sum(-1).tolist() == pytest.approx([0.0 if tag == WAVE else 1.0 for tag in TAGS_T.tolist()], rel=1e-12)
    assert not p_TE[~owned_TE].any() and not logits_TE.grad[~owned_TE].any()


@pytest.mark.parametrize("gate", GATES)
def test_shared_only_tokens_choose_nobody_and_move_no_logit(gate: str) -> None:
    plan = moe_plan(gate=gate, normalise_top_k=True)
    logits_TE = draw_logits(9, 5, 8, size=50.0).requires_grad_()
    choice = run(plan, logits_TE, torch.full((5,), WAVE))
    assert not choice.is_chosen_TK.any() and not choice.weights_TK.any()
    choice.weights_TK.sum().backward()
    assert torch.equal(logits_TE.grad, torch.zeros_like(logits_TE))


@pytest.mark.parametrize("gate", GATES)
def test_a_bias_shifts_the_choice_and_never_the_weights(gate: str) -> None:
    plan, logits_TE, tags_T = (
        moe_plan(INTERLEAVED, gate=gate, scale=1.5),
        draw_logits(10, 72, 8, size=1.0),
        TAGS_T.repeat(8),
    )
    bias_E = torch.tensor([0.1, -0.2, 0.3, 0.2, -0.1, 0.0, 5.0, -5.0], dtype=torch.float64)
    choice = run(plan, logits_TE, tags_T, bias_E=bias_E)
    _, _, scores_TE = mamoe.gate(logits_TE, tags_T, oracle_groups(plan), **oracle_gate(plan))
    assert (
        difference(
            choice.weights_TK, 1.5 * scores_TE.gather(1, choice.experts_TK).masked_fill(~choice.is_chosen_TK, 0.0)
        )
        < 1e-12
    )
    shifted = 0
    for t, tag in enumerate(tags_T.tolist()):
        own = oracle_groups(plan).get(tag, [])
        wanted = sorted(own, key=lambda e: float(-scores_TE[t, e] - bias_E[e]))[:2]
        unbiased = sorted(own, key=lambda e: float(-scores_TE[t, e]))[:2]
        assert sorted(choice.experts_TK[t][choice.is_chosen_TK[t]].tolist()) == sorted(wanted)
        shifted += set(wanted) != set(unbiased)
    assert shifted > 20  # of 56 tokens that choose


def test_no_bias_is_large_enough_to_leave_the_group() -> None:
    plan = moe_plan(HALVES, top_k=4)
    bias_E = torch.tensor([-9.0] * 4 + [9.0] * 4, dtype=torch.float64)
    choice = run(plan, draw_logits(11, 6, 8), torch.full((6,), TEXT), bias_E=bias_E)
    assert choice.experts_TK.sort(-1).values.tolist() == [[0, 1, 2, 3]] * 6


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("wild", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_told_by_the_weights(gate: str, wild: float) -> None:
    logits_TE = torch.zeros(len(TAGS_T), 8)
    logits_TE[0, 1] = wild  # of a token of text, an expert of text
    choice = run(moe_plan(HALVES, gate=gate), logits_TE, TAGS_T)
    assert choice.is_chosen_TK[0].all() and choice.weights_TK[0].isnan().any()
    assert not choice.weights_TK[1:].isnan().any() and not choice.is_chosen_TK[TAGS_T == WAVE].any()
