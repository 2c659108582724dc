"""Values narrower than keys take a fused kernel on a CPU too, and come out as by the plain path."""

from __future__ import annotations

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
