"""A stock Megatron-Core MoELayer with our router against the float64 oracle: outputs, choices, weights, all gradients.

Batches mix text, audio, wave markers (shared experts only) and pads, which are routed by their tag like any token.
Logits are spread enough that no choice is a near tie, which `unclear` checks.
"""

# T tokens, E routed experts

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_most.config import MoEPlan
from megatron_most.config.partition import place
from megatron_most.moe.gates import choose
from megatron_most.moe.groups import GroupTables
from tests.harness import run_ranks
from tests.moe.tiny import (
    HALVES,
    INTERLEAVED,
    TEXT,
    VANILLA,
    WAVE,
    Case,
    difference,
    draw_case,
    lines,
    moe_plan,
    oracle_gate,
    oracle_groups,
    oracle_layer,
    run_layer,
)
from tests.oracles import mamoe

GATES = ("masked_softmax", "reference")
TOLERANCE = 1e-5  # fp32 against float64, sums of 64 to 1000 terms


def run(
    case: Case, groups: Any, of_moe: dict[str, Any] | None = None, constants: list[float] | None = None, **moe: Any
) -> dict[str, Any]:
    """The product's layer with fields of [moe] set."""
    changes = {f"moe.{name}": value for name, value in moe.items()}
    changes |= {"moe.groups": lines(groups), "moe.shared_only_tags": [] if groups == VANILLA else ["wave"]}
    return run_ranks(run_layer, 1, case, changes, of_moe, constants)[0]


def unclear(case: Case, plan: MoEPlan) -> int:
    """Tokens whose last chosen and first unchosen expert are within 1e-5 of each other."""
    logits_TE = mamoe.router_logits(case.x_SBD.flatten(0, 1), case.router_ED)
    _, _, scores_TE = mamoe.gate(logits_TE, case.tags_T, oracle_groups(plan), **oracle_gate(plan))
    best_TE = scores_TE.sort(dim=-1, descending=True).values
    return int(((best_TE[:, plan.top_k - 1] - best_TE[:, plan.top_k] < 1e-5) & (case.tags_T != WAVE)).sum())


def compare(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> None:
    assert torch.equal(ours["choices"], theirs["choices"])
    assert difference(ours["weights"], theirs["weights"]) < tolerance
    assert difference(ours["output"], theirs["output"]) < tolerance
    assert ours["gradients"].keys() == theirs["gradients"].keys()
    for name, expected in theirs["gradients"].items():
        actual = torch.zeros_like(expected) if ours["gradients"][name] is None else ours["gradients"][name]
        if expected.any():
            assert difference(actual, expected) < tolerance, name
        else:
            assert not actual.any(), name


@pytest.mark.parametrize(
    ("gate", "normalise", "top_k", "groups"),
    [
        *((gate, normalise, 2, HALVES) for gate in GATES for normalise in (False, True)),
        *((gate, True, 1, INTERLEAVED) for gate in GATES),
        *((gate, False, 2, INTERLEAVED) for gate in GATES),
        ("masked_softmax", True, 2, VANILLA),
    ],
)
def test_outputs_choices_and_every_gradient_are_the_oracles(
    gate: str, normalise: bool, top_k: int, groups: Any
) -> None:
    case, of_gate = draw_case(1), {"gate": gate, "normalise_top_k": normalise, "top_k": top_k, "scale": 1.5}
    plan = moe_plan(groups, **of_gate)
    assert unclear(case, plan) == 0
    theirs = oracle_layer(case, plan)
    assert all(gradient.any() for gradient in theirs["gradients"].values())  # every expert is used
    compare(run(case, groups, **of_gate), theirs, TOLERANCE)


def test_group_limited_routing_survives_the_layer() -> None:
    case, of_gate = draw_case(2), {"gate": "reference", "routing_groups": 4, "routing_groups_kept": 1}
    plan = moe_plan(INTERLEAVED, **of_gate)
    theirs = oracle_layer(case, plan)
    chosen_T = theirs["choices"].sum(-1)
    assert {0, 1, 2} == set(chosen_T.tolist())  # shared-only, a run with one own expert, a run with two
    compare(run(case, INTERLEAVED, **of_gate), theirs, TOLERANCE)


def test_saved_group_constants_weigh_each_groups_output() -> None:
    case, plan = draw_case(11), moe_plan(INTERLEAVED)
    compare(run(case, INTERLEAVED, constants=[0.5, 0.125]), oracle_layer(case, plan, [0.5, 0.125]), TOLERANCE)


@pytest.mark.parametrize(
    "groups", [HALVES, (("text", (0, 2, 3, 4, 5, 7)), ("audio", (1, 6)))], ids=["halves", "uneven"]
)
@pytest.mark.parametrize("gate", GATES)
def test_placement_changes_nothing_that_is_computed(gate: str, groups: Any) -> None:
    case, of_moe = (
        draw_case(3),
        {"gate": gate, "scale": 1.5, "aux_loss": "group", "aux_coefficient": 0.1, "z_coefficient": 0.01},
    )
    slot_of = place([experts for _, experts in groups], "striped", 2)
    assert slot_of != tuple(range(8))
    blocked, striped = run(case, groups, **of_moe), run(case, groups, {"slot_of": slot_of}, **of_moe)
    compare(striped, blocked, 1e-6)  # the same numbers, added up in another order at most


# ----------------------------------------------------------------------------------------- batches without a modality


@pytest.mark.parametrize("gate", GATES)
def test_experts_of_an_absent_modality_stay_idle_and_nothing_becomes_nan(gate: str) -> None:
    case, plan = draw_case(4, ["tttttt", "tttt__"]), moe_plan(gate=gate)
    ours = run(case, HALVES, gate=gate, aux_loss="group", aux_coefficient=1e-30, z_coefficient=1e-30)
    compare(ours, oracle_layer(case, plan), TOLERANCE)
    for e in range(4, 8):
        assert not ours["choices"][:, e].any()
        assert all(
            g is None or not g.any() for g in (ours["gradients"][f"gate_up {e}"], ours["gradients"][f"down {e}"])
        )
    router_ED = ours["gradients"]["router"]
    assert bool(router_ED[:4].any()) and bool(router_ED[4:].any()) == (gate == "reference")  # its softmax is over all


@pytest.mark.parametrize("aux_loss", ["group", "reference"])
@pytest.mark.parametrize("gate", GATES)
def test_a_batch_of_shared_only_tokens_is_the_shared_expert_alone(gate: str, aux_loss: str) -> None:
    case = draw_case(5, ["wwww", "wwww"])
    ours = run(case, HALVES, gate=gate, normalise_top_k=True, aux_loss=aux_loss, aux_coefficient=0.1, z_coefficient=0.1)
    shared_TD = mamoe.expert(case.x_SBD.flatten(0, 1), *case.shared)
    assert not ours["choices"].any() and not ours["weights"].any()
    assert difference(ours["output"], shared_TD) < TOLERANCE
    for name, gradient in ours["gradients"].items():
        has_gradient = name == "x" or name.startswith("shared")
        assert gradient is not None or not has_gradient, name
        assert gradient is None or bool(gradient.isfinite().all()), name
        assert gradient is None or bool(gradient.any()) == has_gradient, name


# --------------------------------------------------------------------------------------------------- auxiliary losses


def oracle_gradient(case: Case, plan: MoEPlan, tied_TE: torch.Tensor | None = None) -> torch.Tensor:
    """d (sum over sequences of all weighted auxiliary losses) / d router, in float64."""
    router_ED, groups = case.router_ED.double().requires_grad_(), oracle_groups(plan)
    logits_TE = mamoe.router_logits(case.x_SBD.flatten(0, 1), router_ED)
    _, chosen_TE, _ = mamoe.gate(logits_TE.detach(), case.tags_T, groups, **oracle_gate(plan))
    where = {"pad_T": case.is_pad_T, "sequence_T": case.sequence_T, "shared_only": plan.shared_only}
    total = logits_TE.sum() * 0
    if plan.aux_loss == "group":
        value = mamoe.group_aux_loss(
            logits_TE, chosen_TE, case.tags_T, groups, top_k=plan.top_k, scope=plan.aux_scope, **where
        )
        total = total + plan.aux_coefficient * value
    if plan.aux_loss == "reference":
        total = total + mamoe.reference_aux_loss(
            logits_TE, chosen_TE, case.tags_T, groups, top_k=plan.top_k, alpha=plan.aux_coefficient,
            seq_aux=plan.aux_scope == "sequence", count_everything=plan.aux_counts_everything, tied_TE=tied_TE, **where,
        )  # fmt: skip
    if plan.z_coefficient:
        value = mamoe.z_loss(logits_TE, case.tags_T, groups, mode=plan.gate, scope=plan.aux_scope, **where)
        total = total + plan.z_coefficient * value
    (total * case.tags_BS.size(0)).backward()
    return router_ED.grad


def product_gradient(case: Case, plan: MoEPlan) -> torch.Tensor:
    """The same out of a backward pass through the layer, whose own loss has gradient 0."""
    names = (
        "gate",
        "top_k",
        "normalise_top_k",
        "aux_loss",
        "aux_coefficient",
        "aux_scope",
        "aux_counts_everything",
        "z_coefficient",
    )
    groups = [(name, experts) for name, experts in zip(plan.group_names, plan.groups, strict=True)]
    ours = run(case, groups, **{name: getattr(plan, name) for name in names})
    assert not ours["gradients"]["shared down"].any()
    return ours["gradients"]["router"]


@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("aux_loss", ["group", "reference"])
@pytest.mark.parametrize("gate", GATES)
def test_auxiliary_gradients_are_the_oracles_summed_over_sequences(gate: str, aux_loss: str, scope: str) -> None:
    case = draw_case(6, has_main_loss=False)
    groups = INTERLEAVED if gate == "masked_softmax" else HALVES
    plan = moe_plan(groups, gate=gate, aux_loss=aux_loss, aux_coefficient=0.3, aux_scope=scope)
    assert unclear(case, plan) == 0
    expected_ED = oracle_gradient(case, plan)
    assert bool(expected_ED.any())
    assert difference(product_gradient(case, plan), expected_ED) < TOLERANCE


@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("gate", GATES)
def test_counting_everything_counts_pads_and_the_tied_slots_of_shared_only_tokens(gate: str, scope: str) -> None:
    case = draw_case(7, has_main_loss=False)
    plan = moe_plan(gate=gate, aux_loss="reference", aux_coefficient=0.3, aux_scope=scope, aux_counts_everything=True)
    logits_TE = case.x_SBD.flatten(0, 1) @ case.router_ED.T
    choice = choose(
        logits_TE, GroupTables(plan).owns_ME[case.tags_T], None, None, plan
    )  # which slots are tied is the router's whim
    tied_TE = torch.zeros_like(logits_TE, dtype=torch.bool).scatter(1, choice.experts_TK, ~choice.is_chosen_TK)
    assert int(tied_TE.sum()) == 2 * int((case.tags_T == WAVE).sum())
    expected_ED = oracle_gradient(case, plan, tied_TE)
    assert difference(product_gradient(case, plan), expected_ED) < TOLERANCE
    counted_ED = oracle_gradient(case, moe_plan(gate=gate, aux_loss="reference", aux_coefficient=0.3, aux_scope=scope))
    assert difference(counted_ED, expected_ED) > 0.05  # or both ways of counting would pass


@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("gate", GATES)
def test_z_loss_gradients_are_the_oracles_summed_over_sequences(gate: str, scope: str) -> None:
    case, plan = draw_case(8, has_main_loss=False), moe_plan(INTERLEAVED, gate=gate, z_coefficient=0.2, aux_scope=scope)
    assert difference(product_gradient(case, plan), oracle_gradient(case, plan)) < TOLERANCE


def test_auxiliary_gradients_add_to_the_models_own() -> None:
    of_moe = {"aux_loss": "group", "aux_coefficient": 0.3, "z_coefficient": 0.2}
    both, main = (run(draw_case(9), HALVES, **settings)["gradients"]["router"] for settings in (of_moe, {}))
    alone = run(draw_case(9, has_main_loss=False), HALVES, **of_moe)["gradients"]["router"]
    assert bool(main.any()) and bool(alone.any())
    assert difference(both, main + alone) < TOLERANCE


@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("aux_loss", ["group", "reference", "none"])
def test_a_row_of_pads_changes_no_auxiliary_loss(aux_loss: str, scope: str) -> None:
    z_coefficient = 0.2 if aux_loss == "none" else 0.0
    plan = moe_plan(aux_loss=aux_loss, aux_coefficient=0.3, aux_scope=scope, z_coefficient=z_coefficient)
    with_filler, without = (
        draw_case(10, ["tatat", "_____"], has_main_loss=False),
        draw_case(10, ["tatat"], has_main_loss=False),
    )
    without = Case(**{**vars(with_filler), "x_SBD": with_filler.x_SBD[:, :1], "tags_BS": without.tags_BS,
                      "is_pad_BS": without.is_pad_BS, "back_SBD": without.back_SBD})  # fmt: skip
    assert int(with_filler.is_pad_BS.sum()) == 5 and int((with_filler.tags_BS[1] == TEXT).sum()) == 5
    assert difference(product_gradient(with_filler, plan), product_gradient(without, plan)) < TOLERANCE
