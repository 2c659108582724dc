"""Rows added up by token in one kernel, in float32 whatever their precision, always in the same order."""

# T tokens, R rows, D width

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS = 1024


def add_up(rows_RD: torch.Tensor, order_R: torch.Tensor, starts_T: torch.Tensor) -> torch.Tensor:
    """As F.embedding_bag(order_R, rows_RD, starts_T, mode="sum"): of token t, rows order[starts[t]] up to those of
    t + 1.
    """
    width = rows_RD.size(1)
    out_TD = rows_RD.new_empty(starts_T.numel(), width)
    if out_TD.numel():
        columns = min(COLUMNS, triton.next_power_of_2(width))
        grid = (starts_T.numel(), triton.cdiv(width, columns))
        _add_up[grid](rows_RD.contiguous(), order_R, starts_T, out_TD, order_R.numel(), width, COLUMNS=columns)
    return out_TD


@triton.jit(do_not_specialize=["num_rows"])
def _add_up(rows, order, starts, out, num_rows, width, COLUMNS: tl.constexpr):
    token = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    first = tl.load(starts + token).to(tl.int32)
    last = tl.load(starts + token + 1, mask=token + 1 < tl.num_programs(0), other=num_rows).to(tl.int32)
    total = tl.zeros([COLUMNS], tl.float32)
    for place in range(first, last):
        row = tl.load(order + place).to(tl.int64)
        total += tl.load(rows + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token.to(tl.int64) * width + columns, total.to(out.dtype.element_ty), mask=inside)
