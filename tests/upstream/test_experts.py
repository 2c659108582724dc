"""All experts at once give what Core's loop over them gives: outputs and every gradient."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import ScalingType

from megatron_most.config import load_recipe, replace
from megatron_most.convert.lent import lend
from megatron_most.engine import make_plan, open_groups
from megatron_most.errors import ConfigError
from megatron_most.model import build_model
from megatron_most.runtime import CPU_BACKEND, GPU_BACKEND, Ranks
from megatron_most.upstream import Experts
from tests.harness import BACKENDS, has_hopper, run_ranks

COUNTS = ([5, 0, 7, 1, 0, 0, 11, 3], [0] * 8, [0, 0, 0, 0, 0, 0, 0, 9])


def differences(ranks: Ranks, precision: str, is_grouped: bool) -> list[float]:
    plan = make_plan(
        replace(load_recipe("most-tiny"), {"model.num_layers": 2, "engine.precision": precision}), 1, ranks.device
    )
    with open_groups(plan, ranks) as session:
        device = ranks.device.torch_device
        model = build_model(plan, session.groups, device)
        experts = next(module for module in model.modules() if isinstance(module, Experts))
        if is_grouped:
            experts.lay_together()
        assert experts.is_grouped == is_grouped
        core: Any = super(Experts, experts).forward
        found = []
        for counts in COUNTS:
            draw = torch.Generator().manual_seed(sum(counts))
            rows = torch.randn(sum(counts), plan.config.model.hidden_size, generator=draw).to(device)
            probs, slope = (made.to(device) for made in (
                torch.rand(sum(counts), generator=draw), torch.randn(rows.shape, generator=draw)
            ))  # fmt: skip
            results = []
            for forward in (experts, core):
                given = rows.to(next(experts.parameters()).dtype).requires_grad_()
                weights = probs.clone().requires_grad_()
                out, bias = forward(given, torch.tensor(counts), weights)
                assert bias is None
                asked = [given, weights, *experts.parameters()]
                results.append([out, *torch.autograd.grad((out * slope).sum(), asked)])
            for ours, theirs in zip(*results, strict=True):
                assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
                size = float(theirs.float().abs().max()) if theirs.numel() else 0.0
                found.append(float((ours - theirs).float().abs().max()) / max(size, 1e-6) if ours.numel() else 0.0)
        return found


ON_GPU = pytest.param("bf16", 2e-2, True, GPU_BACKEND, marks=pytest.mark.gpu)


@pytest.mark.parametrize(
    ("precision", "most", "is_grouped", "backend"),
    [
        ("fp32", 1e-5, False, CPU_BACKEND), ("bf16", 2e-2, False, CPU_BACKEND), ("fp32", 1e-5, True, CPU_BACKEND),
        ("bf16", 2e-2, True, CPU_BACKEND), ON_GPU,
    ],
)  # fmt: skip
def test_outputs_and_gradients_are_those_of_cores_loop(
    precision: str, most: float, is_grouped: bool, backend: str
) -> None:
    (found,) = run_ranks(differences, 1, precision, is_grouped, backend=backend)
    assert len(found) == 3 * (3 + 16) and max(found) < most and max(found) > 0


def scaled_by_loops(
    rows: torch.Tensor, factors: torch.Tensor, scales: torch.Tensor, recipe: Any, factor_scales: torch.Tensor,
    factor_recipe: Any, *, offs: torch.Tensor, output_dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """What torch's documentation says of it, after torch's own look at types, strides and alignment."""
    given = [x.to("meta") if x.dtype != torch.float8_e4m3fn else _like(x) for x in (rows, factors)]
    torch.ops.aten._scaled_grouped_mm(
        given[0], given[1], scales.to("meta"), factor_scales.to("meta"), offs.to("meta"), out_dtype=output_dtype
    )
    assert recipe == factor_recipe == ScalingType.RowWise and offs.dtype == torch.int32
    out, start = torch.zeros(rows.size(0), factors.size(-1)), 0
    for expert, end in enumerate(offs.tolist()):
        out[start:end] = rows[start:end].float() @ factors[expert].float()
        out[start:end] *= scales[start:end, None] * factor_scales[expert][None]
        start = end
    return out.to(output_dtype)


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def in_fp8(ranks: Ranks) -> list[float]:
    """How far outputs and gradients are from bf16's, by their size, and the same of bf16 from float32's."""
    device = ranks.device.torch_device
    if device.type == "cpu":
        F.scaled_grouped_mm = scaled_by_loops
    changes = {"model.num_layers": 2, "engine.precision": "bf16"}
    plan = make_plan(replace(load_recipe("most-tiny"), changes), 1, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups, device)
        experts = next(module for module in model.modules() if isinstance(module, Experts))
        experts.lay_together()
        found = []
        for counts in COUNTS[::2]:
            draw = torch.Generator().manual_seed(sum(counts))
            rows = torch.randn(sum(counts), plan.config.model.hidden_size, generator=draw).to(device, torch.bfloat16)
            probs, slope = (made.to(device) for made in (
                torch.rand(sum(counts), generator=draw), torch.randn(rows.shape, generator=draw)
            ))  # fmt: skip
            results = []
            for way in ("fp8", "bf16"):
                experts.is_fp8 = False
                if way == "fp8":
                    experts.take_fp8()
                given, weights = rows.clone().requires_grad_(), probs.clone().requires_grad_()
                out, _ = experts(given, torch.tensor(counts), weights)
                asked = [given, weights, *experts.parameters()]
                results.append([out, *torch.autograd.grad((out * slope).sum(), asked)])
            for ours, plain in zip(*results, strict=True):
                assert ours.dtype == plain.dtype and ours.shape == plain.shape
                found.append(float((ours - plain).float().norm() / plain.float().norm().clamp(min=1e-9)))
        return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_fp8_all_is_nearly_that_of_bf16(backend: str) -> None:
    if backend == CPU_BACKEND and "TRITON_INTERPRET" not in os.environ:
        pytest.skip("with a gpu kernels are compiled, and compared there")
    if backend == GPU_BACKEND and not has_hopper():
        pytest.skip("needs a gpu of the Hopper generation")
    (found,) = run_ranks(in_fp8, 1, backend=backend)
    assert len(found) == 2 * (3 + 16) and 0.005 < max(found) < 0.15 and sum(one > 0 for one in found) > 10


def test_fp8_is_refused_where_it_would_not_be() -> None:
    def build(ranks: Ranks) -> str:
        changes = {"model.num_layers": 2, "engine.precision": "bf16", "engine.kernels": "fp8"}
        plan = make_plan(replace(load_recipe("most-tiny"), changes), 1, ranks.device)
        with open_groups(plan, ranks) as session, pytest.raises(ConfigError, match="want a Hopper GPU") as error:
            build_model(plan, session.groups)
        return str(error.value)

    assert "engine.kernels" in run_ranks(build, 1)[0]


def frozen(ranks: Ranks) -> list[bool]:
    plan = make_plan(replace(load_recipe("most-tiny"), {"model.num_layers": 2}), 1, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        experts = next(module for module in model.modules() if isinstance(module, Experts))
        for expert in experts.local_experts[:4]:
            expert.requires_grad_(False)
        rows = torch.randn(16, plan.config.model.hidden_size)
        out, _ = experts(rows, torch.tensor([2] * 8), torch.rand(16))
        out.sum().backward()
        return [weight.grad is None for weight in experts.parameters()]


def test_frozen_experts_get_no_gradients() -> None:
    (without,) = run_ranks(frozen, 1)
    assert without == [True] * 8 + [False] * 8


def lent(ranks: Ranks) -> bool:
    plan = make_plan(replace(load_recipe("most-tiny"), {"model.num_layers": 2}), 1, ranks.device)
    with open_groups(plan, ranks) as session, torch.no_grad():
        model = build_model(plan, session.groups)
        experts = next(module for module in model.modules() if isinstance(module, Experts))
        rows, counts, probs = torch.randn(16, plan.config.model.hidden_size), torch.tensor([2] * 8), torch.rand(16)
        wanted, _ = experts(rows, counts, probs)
        for expert in experts.local_experts:
            for linear in (expert.linear_fc1, expert.linear_fc2):
                lend(linear, ["weight"], lambda _, weight=linear.weight: weight)
        found, _ = experts(rows, counts, probs)
        return torch.allclose(found, wanted, atol=1e-6)


def test_weights_that_are_lent_are_waited_for() -> None:
    assert run_ranks(lent, 1) == [True]
