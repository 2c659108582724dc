"""Rows in fp8 (e4m3), each with a scale of its own, in one kernel."""

# R rows, K their width

from __future__ import annotations

import torch
import triton
import triton.language as tl

LARGEST = 448.0
"""That e4m3 holds."""
COLUMNS = 4096


def to_fp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., K] -> fp8 [..., K] and float32 [...]: a row is about its values by its scale. Rows may lie anyhow; the
    values lie row by row.
    """
    rows_RK = rows.reshape(-1, rows.size(-1))
    values_RK = torch.empty(rows_RK.shape, dtype=torch.float8_e4m3fn, device=rows.device)
    scales_R = torch.empty(len(rows_RK), dtype=torch.float32, device=rows.device)
    width = rows_RK.size(1)
    if rows_RK.numel():
        columns = min(COLUMNS, triton.next_power_of_2(width))
        _to_fp8[(len(rows_RK),)](
            rows_RK, values_RK, scales_R, rows_RK.stride(0), rows_RK.stride(1), width, LARGEST=LARGEST, COLUMNS=columns
        )
    return values_RK.view(rows.shape), scales_R.view(rows.shape[:-1])


@triton.jit
def _to_fp8(rows, values, scales, row_stride, stride, width, LARGEST: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        given = tl.load(rows + row * row_stride + columns * stride, mask=columns < width, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.abs(given))
    scale = tl.maximum(tl.max(most, 0), 1e-30) / LARGEST
    tl.store(scales + row, scale)
    for start in range(0, width, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        given = tl.load(rows + row * row_stride + columns * stride, mask=columns < width, other=0.0).to(tl.float32)
        value = _rounded(given / scale).to(values.dtype.element_ty)
        tl.store(values + row * width + columns, value, mask=columns < width)


@triton.jit
def _rounded(x):
    """To the nearest that e4m3 holds, so that every cast gives the same; the interpreter's forgets to carry."""
    bits = x.to(tl.int32, bitcast=True)
    near = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)  # three bits stay
    even = (x + 24576.0) - 24576.0  # below 2^-6 steps are even, of 2^-9: float32's at 1.5 * 2^14
    return tl.where(tl.abs(x) < 0.015625, even, near)
