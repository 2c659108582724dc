"""Core's experts of a rank, computed with one backward for all of them.

Core calls each expert's modules by themselves: some twelve nodes of autograd an expert, its rows cut out and laid
together again by copies, and five inner widths kept for the backward pass. Here every product writes where its rows
lie, what stands between the products is done for all rows at once, and the activation is computed again. The weights
have the names that Core gives them. On a GPU that multiplies all experts' rows in one call they lie in one piece of
memory, so that nothing is copied for it.
"""

# T rows, sorted by expert; D width, F inner width of this rank; E experts of it; I into a product, O out of it

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.experts import SequentialMLP

from megatron_most import kernels
from megatron_most.errors import ConfigError
from megatron_most.upstream.products import FP8_WIDTH, Grouped, GroupedFp8, Looped, Products


class Experts(SequentialMLP):
    """Equal to SequentialMLP but for rounding; where it would do more than SwiGLU without biases, it is that."""

    is_grouped = False
    """All experts in one call. Set by `lay_together`."""
    is_fp8 = False
    """And in fp8. Set by `take_fp8`."""
    is_fused = False
    """The activation by our kernels. Set where the device has them."""

    def lay_together(self) -> None:
        """Move the first products' weights into one piece of memory, and the second's; then `is_grouped`.

        Before an engine takes the weights: from then on they are its own to move. What the kernels do not take (rows
        that are no multiple of 16 bytes) stays expert by expert.
        """
        every = [weight for weights in self._weights() for weight in weights]
        if not self._is_swiglu() or any(is_elsewhere(weight) for weight in every):
            return
        if any(weight.size(-1) * weight.element_size() % 16 for weight in every):
            return
        for weights in self._weights():
            whole_EOI = torch.stack([weight.detach() for weight in weights])
            for weight, part in zip(weights, whole_EOI, strict=True):
                weight.data = part
        self.is_grouped = True

    def take_fp8(self) -> None:
        """After `lay_together`."""
        widths = {width for weights in self._weights() for width in weights[0].shape}
        if not self.is_grouped or any(width % FP8_WIDTH for width in widths):
            wrong = f"these experts' widths ({', '.join(map(str, sorted(widths)))}) are not for its products"
            raise ConfigError("engine.kernels", "fp8", wrong, f'use "auto", or multiples of {FP8_WIDTH} on every rank')
        self.is_fp8 = True

    def _weights(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [e.linear_fc1.weight for e in self.local_experts], [e.linear_fc2.weight for e in self.local_experts]

    def forward(
        self, permuted_local_hidden_states: torch.Tensor, tokens_per_expert: torch.Tensor, permuted_probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        ups, downs = self._weights()
        if not self._is_swiglu() or any(is_elsewhere(weight) for weight in (*ups, *downs)):
            return super().forward(permuted_local_hidden_states, tokens_per_expert, permuted_probs)
        products: Products = Looped(tokens_per_expert.tolist())
        if self.is_grouped and len(permuted_local_hidden_states):
            kind = GroupedFp8 if self.is_fp8 else Grouped
            products = kind(tokens_per_expert, permuted_local_hidden_states.device)
        given = permuted_local_hidden_states, permuted_probs, products, self.is_fused
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
        ctx: Any, rows_TD: torch.Tensor, probs_T: torch.Tensor, products: Products, is_fused: bool,
        *weights: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        half = len(weights) // 2
        out_TD, inner_TF2 = _swiglus(rows_TD, probs_T, products, is_fused, weights[:half], weights[half:])
        ctx.products, ctx.is_fused = products, is_fused
        ctx.save_for_backward(rows_TD, probs_T, inner_TF2, *weights)
        return out_TD

    @staticmethod
    def backward(ctx: Any, slope_TD: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows_TD, probs_T, inner_TF2, *weights = ctx.saved_tensors
        products, wanted, half = ctx.products, ctx.needs_input_grad[4:], len(weights) // 2
        ups, downs = weights[:half], weights[half:]
        slope_TD = slope_TD.contiguous()
        if ctx.is_fused:
            said_TF = kernels.swiglu(inner_TF2, probs_T)
            of_downs = _wanted(products, wanted[half:], slope_TD, said_TF)
            del said_TF  # this is where a layer's backward pass has most
            slope_TF2, of_probs_T = kernels.swiglu_slopes(inner_TF2, probs_T, products.of_rows(slope_TD, downs))
        else:
            gate_TF, linear_TF = inner_TF2.chunk(2, -1)
            share_TF = gate_TF.sigmoid()
            silu_TF = gate_TF * share_TF
            plain_TF = silu_TF * linear_TF
            of_downs = _wanted(products, wanted[half:], slope_TD, _weighted(plain_TF, probs_T))
            slope_TF = products.of_rows(slope_TD, downs)
            of_probs_T = (slope_TF * plain_TF).sum(-1, dtype=probs_T.dtype)
            del plain_TF
            slope_TF = _weighted(slope_TF, probs_T)
            slope_TF2 = torch.empty_like(inner_TF2)
            of_gate_TF, of_linear_TF = slope_TF2.chunk(2, -1)
            torch.mul(slope_TF, silu_TF, out=of_linear_TF)
            # silu'(x) = s(x) (1 + x (1 - s(x))) = silu(x) - silu(x) s(x) + s(x)
            steep_TF = silu_TF.addcmul_(silu_TF, share_TF, value=-1).add_(share_TF)
            torch.mul(slope_TF.mul_(linear_TF), steep_TF, out=of_gate_TF)
            del share_TF, silu_TF, steep_TF, slope_TF
        of_ups = _wanted(products, wanted[:half], slope_TF2, rows_TD)
        of_rows_TD = products.of_rows(slope_TF2, ups) if ctx.needs_input_grad[0] else None
        return of_rows_TD, of_probs_T, None, None, *of_ups, *of_downs


def _swiglus(
    rows_TD: torch.Tensor, probs_T: torch.Tensor, products: Products, is_fused: bool, ups: Sequence[torch.Tensor],
    downs: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """What the experts say, and what they have inside before their activation."""
    inner_TF2 = products.forward(rows_TD, ups)
    if is_fused:
        return products.forward(kernels.swiglu(inner_TF2, probs_T), downs), inner_TF2
    gate_TF, linear_TF = inner_TF2.chunk(2, -1)
    return products.forward(_weighted(F.silu(gate_TF).mul_(linear_TF), probs_T), downs), inner_TF2


def _wanted(
    products: Products, wanted: Sequence[bool], slopes: torch.Tensor, rows: torch.Tensor
) -> Sequence[torch.Tensor | None]:
    """Gradients of the weights that are not frozen."""
    if not any(wanted):
        return [None] * len(wanted)
    found = products.of_weights(slopes, rows)
    return [gradient if is_wanted else None for gradient, is_wanted in zip(found, wanted, strict=True)]


def _weighted(values_TF: torch.Tensor, probs_T: torch.Tensor) -> torch.Tensor:
    """In the precision that the wider of both has, as Core multiplies them, then rounded."""
    return torch.mul(values_TF, probs_T.unsqueeze(-1), out=torch.empty_like(values_TF))
