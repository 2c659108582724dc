"""Products of each expert's rows with its weight: expert by expert, or all experts in one call of torch's.

In fp8 each row and each column of a factor has its own scale, so that one large number takes the precision of its own
row alone; gradients of weights stay in bf16, where what is small adds up.
"""

# T rows, sorted by expert; E experts of this rank; I into a product, O out of it

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch.nn.functional import ScalingType

from megatron_most import kernels
from megatron_most.runtime import gpu_generation

FP8_WIDTH = 16
"""Inner and outer widths are multiples of it: rows of fp8 begin at multiples of 16 bytes."""


def has_grouped(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one call for all experts is one kernel: on Hopper. Before it torch's is a loop that waits for the device,
    after it weights of experts without rows were given gradients that are not 0 (torch 2.13).
    """
    return dtype == torch.bfloat16 and gpu_generation(device) == (9, 0)


class Products(Protocol):
    """Of each expert's rows with its weight [O, I]."""

    def forward(self, rows_TI: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """[T, O]."""
        ...

    def of_rows(self, slopes_TO: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """The gradient of the rows, [T, I]."""
        ...

    def of_weights(self, slopes_TO: torch.Tensor, rows_TI: torch.Tensor) -> Sequence[torch.Tensor]:
        """The gradient of each weight; zeros for an expert without rows, as Core has them."""
        ...


class Looped:
    """Expert by expert."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._spans = [slice(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]

    def forward(self, rows_TI: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._each(rows_TI, [weight.t() for weight in weights])

    def of_rows(self, slopes_TO: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._each(slopes_TO, weights)

    def of_weights(self, slopes_TO: torch.Tensor, rows_TI: torch.Tensor) -> Sequence[torch.Tensor]:
        return [slopes_TO[span].t() @ rows_TI[span] for span in self._spans]

    def _each(self, rows: torch.Tensor, factors: Sequence[torch.Tensor]) -> torch.Tensor:
        out = rows.new_empty(len(rows), factors[0].size(1))
        for span, factor in zip(self._spans, factors, strict=True):
            if span.stop > span.start:
                torch.mm(rows[span], factor, out=out[span])
        return out


class Grouped:
    """All experts in one call."""

    def __init__(self, counts: torch.Tensor, device: torch.device) -> None:
        self._ends = counts.cumsum(0).to(device, torch.int32, non_blocking=True)

    def forward(self, rows_TI: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        return F.grouped_mm(rows_TI, as_one(weights).transpose(1, 2), offs=self._ends)

    def of_rows(self, slopes_TO: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        return F.grouped_mm(slopes_TO, as_one(weights), offs=self._ends)

    def of_weights(self, slopes_TO: torch.Tensor, rows_TI: torch.Tensor) -> Sequence[torch.Tensor]:
        return F.grouped_mm(slopes_TO.t(), rows_TI, offs=self._ends).unbind()


class GroupedFp8(Grouped):
    """In fp8, but for the gradients of weights."""

    def forward(self, rows_TI: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._multiplied(rows_TI, as_one(weights))

    def of_rows(self, slopes_TO: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._multiplied(slopes_TO, as_one(weights).transpose(1, 2))

    def _multiplied(self, rows: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Rows [T, I] by factors [E, O, I]: what is summed over comes last in both, as the kernel wants it."""
        values, scales = kernels.to_fp8(rows)
        factor_values, factor_scales = kernels.to_fp8(factors)
        return F.scaled_grouped_mm(  # type: ignore[attr-defined]
            values, factor_values.transpose(1, 2), scales, ScalingType.RowWise, factor_scales, ScalingType.RowWise,
            offs=self._ends, output_dtype=rows.dtype,
        )  # fmt: skip


def as_one(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """[E, O, I]: a view where they lie at even distances in one piece of memory, as `lay_together` or DeepSpeed's flat
    buffers have them; otherwise a copy.
    """
    first, count = weights[0].detach(), len(weights)
    places = [weight.data_ptr() for weight in weights]
    size = first.element_size()
    apart = (places[1] - places[0]) // size if count > 1 else first.numel()
    is_even = places == [places[0] + apart * size * number for number in range(count)] and apart >= first.numel()
    ends = first.storage_offset() + apart * (count - 1) + first.numel()
    is_one_piece = ends * size <= first.untyped_storage().nbytes()
    if is_even and is_one_piece and all(weight.is_contiguous() for weight in weights):
        return first.as_strided((count, *first.shape), (apart, *first.stride()))
    return torch.stack([weight.detach() for weight in weights])
