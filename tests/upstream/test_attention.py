"""Values narrower than keys take a fused kernel on a CPU too, and come out as by the plain path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from megatron_most.upstream.attention import attended

FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def operands(values: int, kv_heads: int = 4) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 24, 24), (2, kv_heads, 24, 24), (2, kv_heads, 24, values))
    return [torch.randn(shape, generator=draw, requires_grad=True) for shape in shapes]


def ops(given: list[torch.Tensor], mask: torch.Tensor | None) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        attended(given[0], given[1], given[2], mask, 0.3)
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(("values", "kv_heads"), [(16, 4), (24, 4), (24, 2), (16, 2)])
def test_narrow_values_are_fused_and_equal_the_plain_path(values: int, kv_heads: int, is_packed: bool) -> None:
    given = operands(values, kv_heads)
    documents = torch.arange(24) // 8
    seen = (documents[:, None] == documents[None]) & torch.ones(24, 24, dtype=torch.bool).tril()
    mask = seen.expand(2, 1, 24, 24) if is_packed else None
    assert FUSED in ops(given, mask)
    out = attended(given[0], given[1], given[2], mask, 0.3)
    with sdpa_kernel(SDPBackend.MATH):
        plain = F.scaled_dot_product_attention(
            *given, attn_mask=mask, is_causal=mask is None, scale=0.3, enable_gqa=kv_heads != 4
        )
    assert out.shape == plain.shape == (2, 4, 24, values)
    torch.testing.assert_close(out, plain, atol=1e-6, rtol=1e-5)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((out * weight).sum(), given)
    theirs = torch.autograd.grad((plain * weight).sum(), given)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_where_the_plain_path_is_asked_for_nothing_is_widened() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        assert "aten::constant_pad_nd" not in ops(operands(16), None)


@pytest.mark.parametrize(
    ("narrow", "wide", "expected"),
    [
        (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, 24), (SDPBackend.MATH, SDPBackend.MATH, 16),
        (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, 24),
        (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, 16),
        (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, 16),
        (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH, 16),
    ],
)  # fmt: skip
def test_values_are_widened_where_that_makes_a_faster_kernel_of_it(
    narrow: SDPBackend, wide: SDPBackend, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = torch.randn(1, 2, 5, 24), torch.randn(1, 2, 5, 24), torch.randn(1, 2, 5, 16)
    plain, seen, real = attended(query, key, value, None, None), [], F.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **words: Any) -> torch.Tensor:
        seen.append(value.size(-1))
        return real(query, key, value, **words)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(
        torch, "_fused_sdp_choice", lambda q, k, v, *_, **__: (wide if v.size(-1) == k.size(-1) else narrow).value
    )
    assert torch.allclose(attended(query, key, value, None, None), plain, atol=1e-6)
    assert seen == [expected]
