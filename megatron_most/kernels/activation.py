"""What stands between the two products of experts, in one kernel each way.

    out = silu(gate) * linear * prob            gate, linear: the halves of inner

In torch that is six operations forward and eleven backward, some of them in float32, each over all rows of all experts.
"""

# R rows, F inner width of an expert

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS = 2048


def swiglu(inner_RF2: torch.Tensor, probs_R: torch.Tensor) -> torch.Tensor:
    """[R, F]."""
    rows, width = inner_RF2.size(0), inner_RF2.size(1) // 2
    out_RF = inner_RF2.new_empty(rows, width)
    if rows:
        _forward[(rows,)](inner_RF2, probs_R.contiguous(), out_RF, width, COLUMNS=_columns(width))
    return out_RF


def swiglu_slopes(
    inner_RF2: torch.Tensor, probs_R: torch.Tensor, slope_RF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of inner and of probs, from that of the output."""
    rows, width = inner_RF2.size(0), inner_RF2.size(1) // 2
    of_inner_RF2, of_probs_R = torch.empty_like(inner_RF2), torch.empty_like(probs_R)
    if rows:
        _backward[(rows,)](
            inner_RF2, probs_R.contiguous(), slope_RF, of_inner_RF2, of_probs_R, width, COLUMNS=_columns(width)
        )
    return of_inner_RF2, of_probs_R


def _columns(width: int) -> int:
    return min(COLUMNS, triton.next_power_of_2(width))


@triton.jit
def _forward(inner, probs, out, width, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    prob = tl.load(probs + row).to(tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < width
        gate = tl.load(inner + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
        linear = tl.load(inner + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
        said = gate * tl.sigmoid(gate) * linear * prob
        tl.store(out + row * width + columns, said.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(inner, probs, slope, of_inner, of_probs, width, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    prob = tl.load(probs + row).to(tl.float32)
    of_prob = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < width
        gate = tl.load(inner + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
        linear = tl.load(inner + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
        steep = tl.load(slope + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(gate)
        silu = gate * share
        of_prob += steep * silu * linear
        steep *= prob
        # silu'(x) = s(x) (1 + x (1 - s(x)))
        of_gate = steep * linear * share * (1.0 + gate * (1.0 - share))
        element = of_inner.dtype.element_ty
        tl.store(of_inner + row * 2 * width + columns, of_gate.to(element), mask=inside)
        tl.store(of_inner + row * 2 * width + width + columns, (steep * silu).to(element), mask=inside)
    tl.store(of_probs + row, tl.sum(of_prob).to(of_probs.dtype.element_ty))
