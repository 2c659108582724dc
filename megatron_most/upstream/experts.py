"""Core's experts of a rank, computed with one backward for all of them.

Core calls each expert's modules by themselves: some twelve nodes of autograd an expert, its rows cut out and laid
together again by copies, and five inner widths kept for the backward pass. Here every product writes where its rows
lie, what stands between the products is done for all rows at once, and the activation is computed again. The weights
stay where Core has them, under their names.
"""

# T rows, sorted by expert; D width, F inner width of this rank

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.experts import SequentialMLP


class Experts(SequentialMLP):
    """Equal to SequentialMLP but for rounding; where it would do more than SwiGLU without biases, it is that."""

    def forward(
        self, permuted_local_hidden_states: torch.Tensor, tokens_per_expert: torch.Tensor, permuted_probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ups = [expert.linear_fc1.weight for expert in self.local_experts]
        downs = [expert.linear_fc2.weight for expert in self.local_experts]
        if not self._is_swiglu() or any(is_elsewhere(weight) for weight in (*ups, *downs)):
            return super().forward(permuted_local_hidden_states, tokens_per_expert, permuted_probs)
        given = permuted_local_hidden_states, permuted_probs, tokens_per_expert.tolist()
        if torch.is_grad_enabled():
            return _SwiGlus.apply(*given, *ups, *downs), None
        return _swiglus(*given, ups, downs)[0], None

    def _is_swiglu(self) -> bool:
        config = self.config
        return (
            config.gated_linear_unit and config.activation_func is F.silu and not config.add_bias_linear
            and config.activation_func_clamp_value is None and not config.glu_linear_offset
            and not (config.fp8 or config.fp4 or config.moe_apply_probs_on_input or config.bias_activation_fusion)
        )  # fmt: skip


def is_elsewhere(weight: torch.Tensor) -> bool:
    """Divided over ranks by ZeRO-3, or lent by a file: it comes when the module that owns it is called."""
    return weight.is_meta or hasattr(weight, "ds_id")


class _SwiGlus(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_TD: torch.Tensor, probs_T: torch.Tensor, counts: list[int], *weights: torch.Tensor
    ) -> torch.Tensor:
        out_TD, inner_TF2 = _swiglus(rows_TD, probs_T, counts, weights[: len(counts)], weights[len(counts) :])
        ctx.counts = counts
        ctx.save_for_backward(rows_TD, probs_T, inner_TF2, *weights)
        return out_TD

    @staticmethod
    def backward(ctx: Any, slope_TD: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows_TD, probs_T, inner_TF2, *weights = ctx.saved_tensors
        counts, wanted = ctx.counts, ctx.needs_input_grad[3:]
        ups, downs = weights[: len(counts)], weights[len(counts) :]
        gate_TF, linear_TF = inner_TF2.chunk(2, -1)
        share_TF = gate_TF.sigmoid()
        silu_TF = gate_TF * share_TF
        plain_TF = silu_TF * linear_TF
        slope_TD = slope_TD.contiguous()
        of_downs = _of_weights(counts, downs, wanted[len(counts) :], slope_TD, _weighted(plain_TF, probs_T))
        slope_TF = torch.empty_like(plain_TF)
        for span, down in _spans(counts, downs):
            torch.mm(slope_TD[span], down, out=slope_TF[span])
        of_probs_T = (slope_TF * plain_TF).sum(-1, dtype=probs_T.dtype)
        del plain_TF  # this is where a layer's backward pass has most
        slope_TF = _weighted(slope_TF, probs_T)
        slope_TF2 = torch.empty_like(inner_TF2)
        of_gate_TF, of_linear_TF = slope_TF2.chunk(2, -1)
        torch.mul(slope_TF, silu_TF, out=of_linear_TF)
        # silu'(x) = s(x) (1 + x (1 - s(x))) = silu(x) - silu(x) s(x) + s(x)
        steep_TF = silu_TF.addcmul_(silu_TF, share_TF, value=-1).add_(share_TF)
        torch.mul(slope_TF.mul_(linear_TF), steep_TF, out=of_gate_TF)
        del share_TF, silu_TF, steep_TF, slope_TF
        of_ups = _of_weights(counts, ups, wanted[: len(counts)], slope_TF2, rows_TD)
        of_rows_TD = None
        if ctx.needs_input_grad[0]:
            of_rows_TD = torch.empty_like(rows_TD)
            for span, up in _spans(counts, ups):
                torch.mm(slope_TF2[span], up, out=of_rows_TD[span])
        return of_rows_TD, of_probs_T, None, *of_ups, *of_downs


def _swiglus(
    rows_TD: torch.Tensor, probs_T: torch.Tensor, counts: Sequence[int], ups: Sequence[torch.Tensor],
    downs: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """What the experts say, and what they have inside before their activation."""
    inner_TF2 = rows_TD.new_empty(len(rows_TD), ups[0].size(0))
    for span, up in _spans(counts, ups):
        torch.mm(rows_TD[span], up.t(), out=inner_TF2[span])
    gate_TF, linear_TF = inner_TF2.chunk(2, -1)
    weighted_TF = _weighted(F.silu(gate_TF).mul_(linear_TF), probs_T)
    out_TD = torch.empty_like(rows_TD)
    for span, down in _spans(counts, downs):
        torch.mm(weighted_TF[span], down.t(), out=out_TD[span])
    return out_TD, inner_TF2


def _spans(counts: Sequence[int], weights: Sequence[torch.Tensor]) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows of each expert that has some, and its weight."""
    start = 0
    for count, weight in zip(counts, weights, strict=True):
        if count:
            yield slice(start, start + count), weight
        start += count


def _of_weights(
    counts: Sequence[int], weights: Sequence[torch.Tensor], wanted: Sequence[bool], slopes: torch.Tensor,
    inputs: torch.Tensor,
) -> list[torch.Tensor | None]:  # fmt: skip
    """Gradients of the weights; zeros for an expert without rows, as Core has them."""
    found: list[torch.Tensor | None] = []
    start = 0
    for count, weight, is_wanted in zip(counts, weights, wanted, strict=True):
        span = slice(start, start + count)
        start += count
        found.append((slopes[span].t() @ inputs[span] if count else torch.zeros_like(weight)) if is_wanted else None)
    return found


def _weighted(values_TF: torch.Tensor, probs_T: torch.Tensor) -> torch.Tensor:
    """In the precision that the wider of both has, as Core multiplies them, then rounded."""
    return (values_TF * probs_T.unsqueeze(-1)).to(values_TF.dtype)
