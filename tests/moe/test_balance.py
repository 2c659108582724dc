"""Balance: the losses at known loads, counts of ranks that share sequences, and biases that even loads out.

Gradients of the losses in one process are compared with the oracle in test_layer.py.
"""

# S sequence, B batch, T tokens, E routed experts, G expert groups, D width

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.moe import collect, move_biases, routers
from megatron_most.moe.balance import group_loss, moved_bias, reference_loss, z_loss
from megatron_most.moe.groups import GroupTables
from megatron_most.runtime import Ranks
from tests.harness import run_ranks
from tests.moe.tiny import (
    AUDIO,
    HALVES,
    INTERLEAVED,
    TEXT,
    Case,
    difference,
    draw_case,
    lines,
    moe_plan,
    open_layer,
    oracle_gate,
    oracle_groups,
    part_of_case,
    run_router,
)
from tests.oracles import mamoe

# --------------------------------------------------------------------------------------------------------- the values


def balanced(num_text: int, num_audio: int, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In-group probabilities, choices (K = 2) and ownership [G, E] of tokens spread evenly over INTERLEAVED's
    groups.
    """
    owns_GE = GroupTables(moe_plan(INTERLEAVED)).owns_GE
    probs, choices = [], []
    for group, num_tokens in enumerate((num_text, num_audio)):
        experts = owns_GE[group].nonzero().flatten()
        for t in range(num_tokens):
            probs.append(owns_GE[group].double() / len(experts))
            choices.append(
                torch.zeros(8, dtype=torch.float64).index_fill(
                    0, experts[[2 * t % len(experts), (2 * t + 1) % len(experts)]], 1.0
                )
            )
    order = torch.randperm(len(probs), generator=torch.Generator().manual_seed(num_text))
    in_order = lambda rows: torch.stack(rows)[order].unsqueeze(1).repeat(1, batch, 1)  # noqa: E731
    return in_order(probs), in_order(choices), owns_GE


@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize(("num_text", "num_audio"), [(5, 45), (45, 6), (5, 3), (10, 0)])
def test_group_loss_is_1_a_sequence_at_perfect_balance_for_any_mix(num_text: int, num_audio: int, scope: Any) -> None:
    probs_SBE, count_SBE, owns_GE = balanced(num_text, num_audio, batch=3)
    load_E = count_SBE.sum((0, 1))
    assert all(len(set(load_E[owns].tolist())) == 1 for owns in owns_GE)  # balanced it is
    assert group_loss(probs_SBE, count_SBE, owns_GE, 2, scope, None)[0].item() == pytest.approx(3.0, rel=1e-12)


def test_group_loss_grows_with_the_load_of_one_expert_by_the_share_of_its_group() -> None:
    """All 45 audio tokens prefer experts 1 and 3 and none 7: 3/2 in a group of 45/50 of the tokens."""
    probs_SBE, count_SBE, owns_GE = balanced(5, 45, batch=1)
    is_audio_S = (probs_SBE[:, 0] * owns_GE[1]).any(-1)
    for tensor, value in ((probs_SBE, 0.5), (count_SBE, 1.0)):
        tensor[is_audio_S] = torch.tensor([0, value, 0, value, 0, 0, 0, 0], dtype=torch.float64)
    assert group_loss(probs_SBE, count_SBE, owns_GE, 2, "sequence", None)[0].item() == pytest.approx(
        0.1 + 0.9 * 1.5, rel=1e-12
    )


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    top_k=st.integers(1, 3),
    scope=st.sampled_from(["sequence", "batch"]),
    gate=st.sampled_from(["masked_softmax", "reference"]),
)
def test_the_values_are_the_oracles_times_the_number_of_sequences(seed: int, top_k: int, scope: Any, gate: str) -> None:
    case, plan = draw_case(seed), moe_plan(INTERLEAVED, top_k=top_k, gate=gate)
    batch, groups, owns_GE = 3, oracle_groups(plan), GroupTables(plan).owns_GE
    shape = (-1, batch)
    logits_TE = mamoe.router_logits(case.x_SBD.flatten(0, 1), case.router_ED)
    _, chosen_TE, _ = mamoe.gate(logits_TE, case.tags_T, groups, **oracle_gate(plan))
    where = {"pad_T": case.is_pad_T, "sequence_T": case.sequence_T, "shared_only": plan.shared_only}
    counted_T = ~case.is_pad_T & GroupTables(plan).owns_ME[case.tags_T].any(-1)
    only_counted = lambda x_TE: (x_TE.double() * counted_T.unsqueeze(-1)).unflatten(0, shape)  # noqa: E731
    count_SBE, counted_SB = only_counted(chosen_TE), counted_T.unflatten(0, shape)

    probs_TE = mamoe.in_group_probabilities(logits_TE, case.tags_T, groups, shared_only=plan.shared_only)
    ours, _ = group_loss(only_counted(probs_TE), count_SBE, owns_GE, top_k, scope, None)
    theirs = mamoe.group_aux_loss(logits_TE, chosen_TE, case.tags_T, groups, top_k=top_k, scope=scope, **where)
    assert ours.item() == pytest.approx(batch * theirs.item(), rel=1e-12)

    scores_TE = mamoe.reference_scores(logits_TE, case.tags_T, groups, shared_only=plan.shared_only)
    ours, _ = reference_loss(only_counted(scores_TE), count_SBE, counted_SB, top_k, scope, None)
    theirs = mamoe.reference_aux_loss(
        logits_TE,
        chosen_TE,
        case.tags_T,
        groups,
        top_k=top_k,
        alpha=1.0,
        seq_aux=scope == "sequence",
        count_everything=False,
        **where,
    )
    assert ours.item() == pytest.approx(batch * theirs.item(), rel=1e-12)

    seen_TE = logits_TE
    if gate == "masked_softmax":
        seen_TE = logits_TE.masked_fill(~GroupTables(plan).owns_ME[case.tags_T] & counted_T.unsqueeze(-1), -torch.inf)
    ours = z_loss(seen_TE.logsumexp(-1).unflatten(0, shape), counted_SB, scope, None)
    theirs = mamoe.z_loss(logits_TE, case.tags_T, groups, mode=gate, scope=scope, **where)
    assert ours.item() == pytest.approx(batch * theirs.item(), rel=1e-12)


# ------------------------------------------------------------------------------------------------------ on many ranks

SETTINGS: list[dict[str, Any]] = [
    *({"aux_loss": name, "aux_scope": scope} for name in ("group", "reference") for scope in ("sequence", "batch")),
    {"aux_loss": "reference", "aux_scope": "sequence", "gate": "reference", "aux_counts_everything": True},
    *({"aux_loss": "none", "aux_scope": scope, "z_coefficient": 0.3} for scope in ("sequence", "batch")),
]
LAYOUTS: dict[str, dict[str, Any]] = {"TP2": {"layout.tensor": 2}, "CP2": {"layout.context": 2}, "DP2": {}}


def gradients(ranks: Ranks, case: Case, layout: dict[str, Any]) -> list[torch.Tensor]:
    """For each of SETTINGS: the auxiliary gradient of the router weight from this rank's tokens."""
    found = []
    for settings_ in SETTINGS:
        changes = {
            f"moe.{name}": value
            for name, value in {"groups": lines(INTERLEAVED), "aux_coefficient": 0.3, **settings_}.items()
        }
        with open_layer(ranks, {**layout, **changes}) as (_, groups, layer):
            with torch.no_grad():
                layer.router.weight.copy_(case.router_ED)
            weights_TE, _ = run_router(layer.router, *part_of_case(case, groups))
            (weights_TE * 0).sum().backward()
            found.append(layer.router.weight.grad)
    return found


@pytest.fixture(scope="module")
def alone() -> list[torch.Tensor]:
    (found,) = run_ranks(gradients, 1, draw_case(21), {})
    assert all(gradient.any() for gradient in found)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_that_share_sequences_count_together(layout: str, alone: list[torch.Tensor]) -> None:
    """Each rank has the gradient of its own tokens. A micro-batch is one data rank's, so "batch" differs over data
    ranks.
    """
    first, second = run_ranks(gradients, 2, draw_case(21), LAYOUTS[layout])
    for settings_, expected, a, b in zip(SETTINGS, alone, first, second, strict=True):
        assert a.any() and b.any()
        is_same = layout != "DP2" or settings_["aux_scope"] == "sequence"
        assert (difference(a + b, expected) < 1e-5) == is_same, settings_  # fp32, sums in another order


def test_evaluation_has_no_auxiliary_gradient() -> None:
    (left,) = run_ranks(gradient_in_evaluation, 1, draw_case(22))
    assert not left.any()


def gradient_in_evaluation(ranks: Ranks, case: Case) -> torch.Tensor:
    changes = {"moe.aux_loss": "group", "moe.aux_coefficient": 0.3, "moe.z_coefficient": 0.3}
    with open_layer(ranks, changes) as (_, groups, layer):
        layer.eval()
        weights_TE, _ = run_router(layer.router, *part_of_case(case, groups))
        (weights_TE * 0).sum().backward()
        return layer.router.weight.grad


# --------------------------------------------------------------------------------------------- the bias on the choice


def test_a_bias_moves_against_the_mean_of_its_own_group() -> None:
    """90 text slots to 10 audio slots: every audio expert is far below the layer's mean of 12.5, and none moves."""
    owns_GE = GroupTables(moe_plan(HALVES)).owns_GE
    load_E = torch.tensor([50.0, 10.0, 22.5, 7.5, 2.5, 2.5, 2.5, 2.5], dtype=torch.float64)
    moved_E = moved_bias(torch.full((8,), 0.5, dtype=torch.float64), load_E, owns_GE, 0.125)
    assert moved_E.tolist() == [0.375, 0.625, 0.5, 0.625, 0.5, 0.5, 0.5, 0.5]


def test_biases_of_a_group_without_tokens_stay() -> None:
    owns_GE = GroupTables(moe_plan(INTERLEAVED)).owns_GE
    load_E = torch.tensor([3.0, 0, 1, 0, 2, 2, 2, 0], dtype=torch.float64)
    moved_E = moved_bias(torch.zeros(8, dtype=torch.float64), load_E, owns_GE, 1.0)
    assert moved_E.tolist() == [-1, 0, 1, 0, 0, 0, 0, 0]


def biases(ranks: Ranks, case: Case, layout: dict[str, Any], looks: bool) -> torch.Tensor:
    """expert_bias after three steps of one micro-batch each; with `looks`, telemetry is collected in between."""
    with open_layer(ranks, {**layout, "moe.bias_rate": 0.01}) as (_, groups, layer):
        with torch.no_grad():
            layer.router.weight.copy_(case.router_ED)
        for _ in range(3):
            run_router(layer.router, *part_of_case(case, groups))
            if looks:
                collect(routers(layer), groups.tokens, groups.stages)
            move_biases(layer, groups.tokens, 1.0)
        return layer.router.expert_bias


@pytest.mark.parametrize("layout", LAYOUTS)
def test_biases_move_alike_on_all_ranks_and_whether_or_not_one_looks(layout: str) -> None:
    case = draw_case(23)
    (expected_E,) = run_ranks(biases, 1, case, {}, False)
    assert set(expected_E.mul(100).round().int().tolist()) & {
        -3,
        3,
    }  # every step counts, and only what came since the last
    for bias_E in run_ranks(biases, 2, case, LAYOUTS[layout], True):
        assert torch.equal(bias_E, expected_E)


def train_biases(ranks: Ranks, rate: float, steps: int) -> list[tuple[float, ...]]:
    """max/mean load of each group over every 20 steps of a fixed router on skewed inputs, one token in ten audio."""
    draw = torch.Generator().manual_seed(24)
    case = draw_case(24)
    tags_BS = torch.where(torch.arange(500) % 10 == 0, AUDIO, TEXT).unsqueeze(0)
    skew_D = case.router_ED[0] + case.router_ED[4]  # everyone likes experts 0 and 4
    found = []
    with open_layer(ranks, {"moe.bias_rate": rate}) as (_, groups, layer):
        with torch.no_grad():
            layer.router.weight.copy_(case.router_ED)
        for step in range(steps):
            x_SBD = 0.6 * torch.randn(500, 1, case.x_SBD.size(-1), generator=draw) + 0.4 * skew_D
            batch = Case(
                **{**vars(case), "x_SBD": x_SBD, "tags_BS": tags_BS, "is_pad_BS": torch.zeros_like(tags_BS).bool()}
            )
            run_router(layer.router, *part_of_case(batch, groups))
            move_biases(layer, groups.tokens, 1.0)
            if step % 20 == 19:
                (layer_seen,) = collect(routers(layer), groups.tokens, groups.stages)
                found.append(tuple(group.load_max_over_mean for group in layer_seen.groups))
    return found


def test_two_hundred_steps_of_bias_even_out_each_groups_load() -> None:
    """max/mean over steps 180..199: text 1.58, audio 1.53 without a bias; 1.006 and 1.028 with one."""
    without, with_bias = run_ranks(train_biases, 1, 0.0, 200)[0], run_ranks(train_biases, 1, 2e-3, 200)[0]
    for group in range(2):
        assert min(row[group] for row in without) > 1.4
        assert with_bias[0][group] > 1.4 and with_bias[-1][group] < 1.05
