"""Each kernel gives what its plain path gives, both ways: in Triton's interpreter here, compiled on a GPU."""

# R rows, T tokens, D width, F inner width, E experts, S slots, M tags

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_most.config import MoEPlan
from megatron_most.moe.gates import choose
from megatron_most.moe.groups import GroupTables
from megatron_most.runtime import CPU_BACKEND, GPU_BACKEND, Ranks
from tests.harness import BACKENDS, has_hopper, run_ranks
from tests.moe.tiny import AUDIO, HALVES, INTERLEAVED, TEXT, VANILLA, WAVE, moe_plan

ON = pytest.mark.parametrize("backend", BACKENDS)
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def run(backend: str, body: Callable[..., Any], *args: Any) -> Any:
    if backend == CPU_BACKEND and "TRITON_INTERPRET" not in os.environ:
        pytest.skip("with a gpu kernels are compiled, and compared there")
    [found] = run_ranks(drawn, 1, body, *args, backend=backend)
    return found


def drawn(ranks: Ranks, body: Callable[..., Any], *args: Any) -> Any:
    return body(ranks.device.torch_device, torch.Generator().manual_seed(0), *args)


def sums(device: torch.device, draw: torch.Generator, dtype: torch.dtype, width: int) -> list[torch.Tensor]:
    from megatron_most.kernels import add_up

    found = []
    for counts in ([3, 0, 1, 2, 6, 0], [0, 0, 0], [1]):
        counts_T = torch.tensor(counts)
        rows_RD = torch.randn(int(counts_T.sum()), width, generator=draw).to(dtype)
        order_R, starts_T = torch.randperm(len(rows_RD), generator=draw), counts_T.cumsum(0) - counts_T
        ours = add_up(rows_RD.to(device), order_R.to(device), starts_T.to(device)).cpu()
        plain = F.embedding_bag(order_R, rows_RD.float(), starts_T, mode="sum")
        assert ours.dtype == dtype
        found += [ours.float(), plain]
    return found


@ON
@PRECISIONS
@pytest.mark.parametrize("width", [40, 64, 2048 + 24])
def test_rows_are_added_up_by_token(backend: str, dtype: torch.dtype, width: int) -> None:
    found = run(backend, sums, dtype, width)
    most = 1e-6 if dtype == torch.float32 else 2**-7  # the interpreter cuts bf16 off, a GPU rounds
    for ours, plain in zip(found[::2], found[1::2], strict=True):
        torch.testing.assert_close(ours, plain, rtol=most, atol=most)


def activations(
    device: torch.device, draw: torch.Generator, dtype: torch.dtype, rows: int, width: int
) -> list[torch.Tensor]:
    """Ours and, in float32 from the same numbers, autograd's: output, gradients of inner and of probs."""
    from megatron_most.kernels import swiglu, swiglu_slopes

    inner_RF2 = (4 * torch.randn(rows, 2 * width, generator=draw)).to(dtype)
    probs_R, slope_RF = torch.rand(rows, generator=draw), torch.randn(rows, width, generator=draw).to(dtype)
    given = [inner_RF2.float().requires_grad_(), probs_R.clone().requires_grad_()]
    gate, linear = given[0].chunk(2, -1)
    out_RF = F.silu(gate) * linear * given[1].unsqueeze(-1)
    plain = [out_RF.detach(), *torch.autograd.grad((out_RF * slope_RF.float()).sum(), given)]
    there = inner_RF2.to(device), probs_R.to(device)
    ours = [swiglu(*there), *swiglu_slopes(*there, slope_RF.to(device))]
    assert [x.dtype for x in ours] == [dtype, dtype, torch.float32]
    return [x.cpu().float() for x in (*ours, *plain)]


@ON
@PRECISIONS
@pytest.mark.parametrize(("rows", "width"), [(7, 96), (3, 1408), (2, 2048 + 40), (0, 32)])
def test_the_activation_and_its_gradients(backend: str, dtype: torch.dtype, rows: int, width: int) -> None:
    found = run(backend, activations, dtype, rows, width)
    most = 2e-6 if dtype == torch.float32 else 2**-7
    for ours, plain in zip(found[:3], found[3:], strict=True):
        scale = float(plain.abs().max()) if plain.numel() else 1.0
        torch.testing.assert_close(ours, plain, rtol=most, atol=most * scale)


def routes(device: torch.device, draw: torch.Generator, plan: MoEPlan, has_bias: bool, constants: Any) -> list[Any]:
    """Ours and the plain path's: weights and map by slot, count and scores by id, the gradient of the logits."""
    from megatron_most.kernels import routed

    tables = GroupTables(plan)
    tags_T = torch.tensor([TEXT, AUDIO, WAVE, TEXT, TEXT, AUDIO] * 7)
    if VANILLA[0][0] in plan.group_names:
        tags_T[tags_T == WAVE] = TEXT
    is_pad_T = torch.rand(len(tags_T), generator=draw) < 0.2
    logits_TE = 3 * torch.randn(len(tags_T), plan.num_experts, generator=draw)
    logits_TE[0] *= 60  # scores that underflow to 0: some of them are chosen all the same, none from elsewhere
    bias_E = 0.3 * torch.randn(plan.num_experts, generator=draw) if has_bias else None
    constant_M = torch.tensor(constants)[tables.group_of_tag_M] if constants else None
    slopes = [torch.randn(logits_TE.shape, generator=draw) for _ in range(2)]
    found = []
    for way in ("ours", "plain"):
        given = logits_TE.to(device if way == "ours" else "cpu").requires_grad_()
        if way == "ours":
            named = (tags_T, is_pad_T, tables.owns_ME, tables.slot_of_E, constant_M, bias_E)
            there = [x if x is None else x.to(device) for x in named]
            got = routed(given, *there, plan.top_k, plan.scale, plan.is_normalised)
        else:
            owned_TE = tables.owns_ME[tags_T]
            constant_T = None if constant_M is None else constant_M[tags_T]
            choice = choose(given, owned_TE, constant_T, bias_E, plan)
            slots_TK = tables.slot_of_E[choice.experts_TK]
            weights = torch.zeros_like(logits_TE).scatter(1, slots_TK, choice.weights_TK)
            is_chosen = torch.zeros_like(owned_TE).scatter(1, slots_TK, choice.is_chosen_TK)
            count = torch.zeros_like(logits_TE).scatter(1, choice.experts_TK, choice.is_chosen_TK.float())
            got = weights, is_chosen, count.masked_fill(is_pad_T.unsqueeze(-1), 0.0), choice.scores_TE
        weights, is_chosen, count, scores = got
        both = (weights * slopes[0].to(weights.device)).sum() + (scores * slopes[1].to(scores.device)).sum()
        each = [both, (weights * slopes[0].to(weights.device)).sum(), scores.square().sum()]
        slope = [torch.autograd.grad(loss, given, retain_graph=True)[0].cpu() for loss in each]
        found.append([x.detach().cpu() for x in got] + slope)
    return found


@ON
@pytest.mark.parametrize("groups", [HALVES, INTERLEAVED, VANILLA])
@pytest.mark.parametrize(
    ("top_k", "normalise", "scale"), [(2, False, 1.0), (2, True, 2.5), (1, True, 1.0), (3, False, 16.0)]
)
@pytest.mark.parametrize(("has_bias", "constants"), [(False, False), (True, True)])
def test_the_gate_chooses_weighs_and_learns_as_the_plain_one(
    backend: str, groups: Any, top_k: int, normalise: bool, scale: float, has_bias: bool, constants: bool
) -> None:
    turned = tuple(reversed(range(8)))
    plan = moe_plan(groups, top_k=top_k, normalise_top_k=normalise, scale=scale, slot_of=turned)
    ours, plain = run(backend, routes, plan, has_bias, [0.5 + g for g in range(len(groups))] if constants else None)
    for one, other in zip(ours[1:3], plain[1:3], strict=True):
        assert torch.equal(one[1:], other[1:]) and torch.equal(one[0].sum(), other[0].sum())
    is_own_S = torch.tensor([expert in plan.groups[0] for expert in turned])  # the first token is text
    assert not (ours[1][0] & ~is_own_S).any()
    for one, other in zip((ours[0], *ours[3:]), (plain[0], *plain[3:]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * max(1.0, float(other.abs().max())))


def wild(device: torch.device, draw: torch.Generator, plan: MoEPlan) -> list[torch.Tensor]:
    from megatron_most.kernels import routed

    tables = GroupTables(plan)
    logits_TE = torch.zeros(5, plan.num_experts)
    logits_TE[0], logits_TE[1], logits_TE[2] = float("nan"), float("-inf"), float("inf")
    named = (torch.tensor([TEXT, AUDIO, TEXT, TEXT, WAVE]), torch.zeros(5, dtype=torch.bool), tables.owns_ME)
    there = [x.to(device) for x in (logits_TE, *named, tables.slot_of_E)]
    return [x.cpu() for x in routed(*there, None, None, plan.top_k, plan.scale, plan.is_normalised)]


@ON
def test_what_is_no_number_is_chosen_and_told_by_its_weights(backend: str) -> None:
    weights, is_chosen, count, scores = run(backend, wild, moe_plan(HALVES))
    assert is_chosen.sum(1).tolist() == [2, 2, 2, 2, 0] and torch.equal(is_chosen.float(), count)
    assert weights[0].isnan().any() and weights[2].isnan().any() and not weights[3:].isnan().any()
    assert not is_chosen[0, 4:].any() and not is_chosen[1, :4].any()  # of its own modality, whatever comes
    assert is_chosen[3, :2].all() and scores[4].eq(0).all()  # equal scores: the lower ids


class Alone:
    """Of tensor ranks."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def losses(device: torch.device, draw: torch.Generator, dtype: torch.dtype, columns: int) -> list[torch.Tensor]:
    """Loss per token and gradients of states and weight: ours, the plain pieces', and in float32 the whole logits'."""
    from megatron_most.model import loss_in_pieces

    hidden_TD = 3 * torch.randn(9, 32, generator=draw)
    weight_VD, labels_T = torch.randn(200, 32, generator=draw), torch.randint(200, (9,), generator=draw)
    slope_T = torch.rand(9, generator=draw).to(device)
    found = []
    for way in ("ours", "plain", "whole"):
        kind = torch.float32 if way == "whole" else dtype
        given = [x.to(dtype).to(device, kind).requires_grad_() for x in (hidden_TD, weight_VD)]
        if way == "whole":
            loss_T = F.cross_entropy(given[0] @ given[1].t(), labels_T.to(device), reduction="none")
        else:
            loss_T = loss_in_pieces(given[0], given[1], labels_T.to(device), columns, Alone(), way == "ours")  # type: ignore[arg-type]
        slopes = torch.autograd.grad((loss_T * slope_T).sum(), given)
        found += [x.detach().float().cpu() for x in (loss_T, *slopes)]
    return found


@ON
@PRECISIONS
@pytest.mark.parametrize("columns", [64, 200, 4096])
def test_the_loss_of_pieces_is_that_of_whole_logits(backend: str, dtype: torch.dtype, columns: int) -> None:
    found = run(backend, losses, dtype, columns)
    for ours, plain, whole in zip(found[:3], found[3:6], found[6:], strict=True):
        size = float(whole.norm())
        most = 2e-6 * size if dtype == torch.float32 else 1.5 * float((plain - whole).norm()) + 4e-3 * size
        assert float((ours - whole).norm()) < most


def eight_bits(device: torch.device, draw: torch.Generator, dtype: torch.dtype) -> list[torch.Tensor]:
    from megatron_most.kernels import to_fp8

    found = []
    for rows in (torch.randn(3, 5, 48, generator=draw), torch.randn(48, 4, generator=draw).t(), torch.zeros(2, 16)):
        rows = rows.to(dtype)
        if rows.ndim == 3:
            rows[0, 0, 0] = 3e4  # which takes the precision of its own row alone
        values, scales = to_fp8(rows.to(device))
        assert values.dtype == torch.float8_e4m3fn and values.is_contiguous() and scales.dtype == torch.float32
        found += [rows.float(), values.cpu().float() * scales.cpu().unsqueeze(-1)]
    return found


@ON
@PRECISIONS
def test_rows_in_fp8_have_scales_of_their_own(backend: str, dtype: torch.dtype) -> None:
    if backend == GPU_BACKEND and not has_hopper():
        pytest.skip("needs a gpu of the Hopper generation")
    found = run(backend, eight_bits, dtype)
    for rows, ours in zip(found[::2], found[1::2], strict=True):
        most = rows.abs().amax(-1, keepdim=True)
        # Three bits behind the point are kept; below 2^-6 of what fp8 holds steps are even.
        assert ((ours - rows).abs() <= 1.01 * torch.maximum(2**-4 * rows.abs(), 2**-10 * most / 448)).all()
