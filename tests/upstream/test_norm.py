"""The norm of a CPU against torch's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_most.upstream.norm import RMSNorm, _Norm


def pair(width: int, dtype: torch.dtype) -> tuple[RMSNorm, torch.nn.RMSNorm]:
    ours = RMSNorm(SimpleNamespace(params_dtype=dtype, sequence_parallel=True), width, eps=1e-5)
    theirs = torch.nn.RMSNorm(width, eps=1e-5, dtype=dtype)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.linspace(0.5, 2, width))
    return ours, theirs


@pytest.mark.parametrize("shape", [(7, 3, 48), (5, 48), (48,), (0, 48), (2, 2, 2, 48)], ids=str)
def test_values_and_gradients_are_those_of_torchs(shape: tuple[int, ...]) -> None:
    found = []
    for norm in pair(48, torch.float32):
        generator = torch.Generator().manual_seed(0)
        x = (torch.randn(shape, generator=generator) * 3).requires_grad_()
        out = norm(x)
        (out * torch.randn(shape, generator=generator)).sum().backward()
        found.append((out, x.grad, norm.weight.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def test_the_backward_pass_is_the_forward_passes() -> None:
    x, weight = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2, 8), (8,)))
    assert torch.autograd.gradcheck(lambda x, weight: _Norm.apply(x, weight, 1e-3), (x, weight))


@pytest.mark.parametrize("frozen", ["weight", "states"])
def test_what_learns_nothing_gets_no_gradient(frozen: str) -> None:
    ours, theirs = pair(16, torch.float32)
    found = []
    for norm in (ours, theirs):
        x = torch.linspace(-1, 2, 32).view(2, 16).requires_grad_(frozen != "states")
        norm.weight.requires_grad_(frozen != "weight")
        norm(x).square().sum().backward()
        found.append((x.grad, norm.weight.grad))
    left, right = found[0][frozen == "states"], found[1][frozen == "states"]
    torch.testing.assert_close(left, right)
    assert left is not None and found[0][frozen != "states"] is None


def test_nothing_and_silence_are_as_torch_has_them() -> None:
    ours, theirs = pair(16, torch.float32)
    assert torch.equal(ours(torch.zeros(2, 16)), theirs(torch.zeros(2, 16)))
    assert ours(torch.full((16,), float("nan"))).isnan().all()


def test_other_precisions_are_torchs_own() -> None:
    ours, theirs = pair(16, torch.bfloat16)
    x = torch.randn(4, 16, dtype=torch.bfloat16)
    assert torch.equal(ours(x), theirs(x)) and ours(x).dtype == torch.bfloat16


def test_without_training_it_is_torchs() -> None:
    """Which takes less without a backward pass."""
    norm, _ = pair(24, torch.float32)
    x = torch.randn(5, 24)
    is_ours = [type(norm.train(is_on)(x).grad_fn).__name__ == "_NormBackward" for is_on in (True, False)]
    assert is_ours == [True, False]
