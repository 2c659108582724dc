"""Cross-entropy of the head without its logits: they are made, used and dropped in pieces of the vocabulary, once for
the loss and once more for its gradients.

    loss_t  = lse_t - h_t . w_label(t),   lse_t = log sum_v exp(h_t . w_v)
    slope   of h_t . w_v is (exp(h_t . w_v - lse_t) - [v = label(t)]) times the slope of loss_t

Of the forward pass only lse is kept. Pieces are of the vocabulary, not of tokens: so the gradient of each row of the
weight is one product, rounded once, as it is for whole logits. By tokens it would have to be added up, below float32
in a float32 copy of all rows: as much as the logits of D tokens.
"""

# T tokens, D width, V columns of the vocabulary that this rank has, C those of a piece

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from megatron_most import kernels


def loss_in_pieces(
    hidden_TD: torch.Tensor, weight_VD: torch.Tensor, labels_T: torch.Tensor, columns: int, tensor: dist.ProcessGroup,
    is_fused: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Loss per token in float32, the same on all tensor ranks, `columns` of the vocabulary at a time; `is_fused`: each
    piece by our kernels.

    Tensor ranks hold the vocabulary's rows in order; all of them call it, with all tokens. The gradient of the hidden
    states is this rank's part, which is to be summed over tensor ranks.
    """
    labels_T = labels_T - tensor.rank() * weight_VD.size(0)
    return _PiecewiseLoss.apply(hidden_TD, weight_VD, labels_T, columns, tensor, is_fused)


class _PiecewiseLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: torch.Tensor, weight_VD: torch.Tensor, labels_T: torch.Tensor, columns: int,
        tensor: dist.ProcessGroup, is_fused: bool,
    ) -> torch.Tensor:  # fmt: skip
        labelled_T = torch.zeros(len(hidden_TD), device=hidden_TD.device)  # a label's logit; 0 where another rank's
        lse_T = torch.full_like(labelled_T, -torch.inf)
        for span, logits_TC, given_TC in _pieces(hidden_TD, weight_VD, columns, is_fused):
            if is_fused:
                kernels.take_piece(given_TC, labels_T, span.start, lse_T, labelled_T)
                continue
            place, is_here_T = _labels_in(span, labels_T)
            labelled_T += logits_TC[place] * is_here_T
            top_T = logits_TC.amax(-1)
            sum_T = logits_TC.sub_(top_T.unsqueeze(-1)).exp_().sum(-1)
            lse_T = torch.logaddexp(lse_T, sum_T.log_().add_(top_T))
        if tensor.size() > 1:
            top_T = lse_T.clone()
            dist.all_reduce(top_T, op=dist.ReduceOp.MAX, group=tensor)
            sums_2T = torch.stack([(lse_T - top_T).exp_(), labelled_T])
            dist.all_reduce(sums_2T, group=tensor)
            lse_T, labelled_T = sums_2T[0].log() + top_T, sums_2T[1]
        ctx.columns, ctx.is_fused = columns, is_fused
        ctx.save_for_backward(hidden_TD, weight_VD, labels_T, lse_T)
        return lse_T - labelled_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_T: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TD, weight_VD, labels_T, lse_T = ctx.saved_tensors
        of_hidden_TD = torch.zeros_like(hidden_TD, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        of_weight_VD = torch.empty_like(weight_VD) if ctx.needs_input_grad[1] else None
        for span, slope_TC, rounded_TC in _pieces(hidden_TD, weight_VD, ctx.columns, ctx.is_fused):
            if ctx.is_fused:
                kernels.piece_slope(rounded_TC, labels_T, span.start, lse_T, slope_T.contiguous())
            else:
                place, is_here_T = _labels_in(span, labels_T)
                slope_TC.sub_(lse_T.unsqueeze(-1)).exp_().mul_(slope_T.unsqueeze(-1))
                slope_TC[place] -= slope_T * is_here_T
                if rounded_TC is not slope_TC:
                    rounded_TC.copy_(slope_TC)
            if of_weight_VD is not None:
                torch.mm(rounded_TC.t(), hidden_TD, out=of_weight_VD[span])
            if of_hidden_TD is None:
                continue
            if rounded_TC.dtype == torch.float32:
                of_hidden_TD.addmm_(slope_TC, weight_VD[span])
            else:  # into float32, or every piece would round what is there
                of_hidden_TD += rounded_TC @ weight_VD[span]
        of_hidden = None if of_hidden_TD is None else of_hidden_TD.to(hidden_TD.dtype)
        return of_hidden, of_weight_VD, None, None, None, None


def _pieces(
    hidden_TD: torch.Tensor, weight_VD: torch.Tensor, columns: int, is_fused: bool
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """(which columns, their logits in float32, the same in the weight's precision) for each piece.

    The room is one for all pieces: each overwrites the one before. In float32 both tensors are one, and for our
    kernels, which widen as they read.
    """
    tokens = len(hidden_TD)
    room = weight_VD.new_empty(tokens * columns)
    wide = room if is_fused or room.dtype == torch.float32 else torch.empty_like(room, dtype=torch.float32)
    for first in range(0, len(weight_VD), columns):
        span = slice(first, min(first + columns, len(weight_VD)))
        shape = tokens, span.stop - span.start
        given_TC, wide_TC = (x[: shape[0] * shape[1]].view(shape) for x in (room, wide))
        torch.mm(hidden_TD, weight_VD[span].t(), out=given_TC)
        if wide is room:
            yield span, given_TC, given_TC
        else:
            yield span, wide_TC.copy_(given_TC), given_TC


def _labels_in(span: slice, labels_T: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """For every token a place in the piece, and whether its label is there (else the place is any)."""
    is_here_T = (labels_T >= span.start) & (labels_T < span.stop)
    tokens_T = torch.arange(len(labels_T), device=labels_T.device)
    return (tokens_T, (labels_T - span.start).clamp(0, span.stop - span.start - 1)), is_here_T
