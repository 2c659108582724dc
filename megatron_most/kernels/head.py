"""A piece of the head's logits, gone over once each way: what the cross-entropy wants of it, and its slope in place.

In torch that is nine passes forward and ten backward, most of them in float32; megatron_most/model/head_loss.py says
there what is computed.
"""

# T tokens, C columns of the vocabulary in a piece

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS = 2048


def take_piece(
    logits_TC: torch.Tensor, labels_T: torch.Tensor, first: int, lse_T: torch.Tensor, labelled_T: torch.Tensor
) -> None:
    """lse = log(exp lse + sum exp logits), and `labelled` gets the label's logit where the label is in this piece,
    whose first column is `first`. Both are float32 and are changed.
    """
    if logits_TC.numel():
        _take[(len(logits_TC),)](
            logits_TC, labels_T, lse_T, labelled_T, first, logits_TC.size(1), logits_TC.stride(0), COLUMNS=COLUMNS
        )


def piece_slope(
    logits_TC: torch.Tensor, labels_T: torch.Tensor, first: int, lse_T: torch.Tensor, slope_T: torch.Tensor
) -> None:
    """Logits become the loss's slope along them: (exp(logits - lse) - [label]) * slope."""
    if logits_TC.numel():
        _slope[(len(logits_TC),)](
            logits_TC, labels_T, lse_T, slope_T, first, logits_TC.size(1), logits_TC.stride(0), COLUMNS=COLUMNS
        )


@triton.jit
def _take(logits, labels, lse, labelled, first, width, stride, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + token) - first
    most = tl.full([COLUMNS], float("-inf"), tl.float32)  # each place its own, so that only the end is a sum
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(logits + token * stride + column, mask=column < width, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(most, x)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(most - base) + tl.exp(x - base)
        most = higher
    before = tl.load(lse + token)
    top = tl.maximum(tl.max(most, 0), before)
    base = tl.where(top == float("-inf"), 0.0, top)
    tl.store(lse + token, base + tl.log(tl.sum(total * tl.exp(most - base), 0) + tl.exp(before - base)))
    if (label >= 0) & (label < width):
        tl.store(labelled + token, tl.load(logits + token * stride + label).to(tl.float32))


@triton.jit
def _slope(logits, labels, lse, slope, first, width, stride, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    label, whole, steep = tl.load(labels + token) - first, tl.load(lse + token), tl.load(slope + token)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        x = tl.load(logits + token * stride + column, mask=column < width, other=0.0).to(tl.float32)
        found = (tl.exp(x - whole) - tl.where(column == label, 1.0, 0.0)) * steep
        tl.store(logits + token * stride + column, found.to(logits.dtype.element_ty), mask=column < width)
