"""Kernels of our own, in Triton, for GPUs: where many small ones of torch's would each go over all rows again.

Each has a plain path in torch beside it, which says what it computes, and a test that compares both; Triton's
interpreter runs them on a CPU. Its modules are imported where a GPU asks for them, never at a start. What differs from
step to step is no reason to compile another: `do_not_specialize`.
"""

from typing import TYPE_CHECKING

from megatron_most.runtime import lazy_names

if TYPE_CHECKING:
    from megatron_most.kernels.activation import swiglu, swiglu_slopes
    from megatron_most.kernels.eight_bits import to_fp8
    from megatron_most.kernels.head import piece_slope, take_piece
    from megatron_most.kernels.route import Routed, routed
    from megatron_most.kernels.rows import add_up

_HOMES = {
    "activation": ("swiglu", "swiglu_slopes"),
    "eight_bits": ("to_fp8",),
    "head": ("piece_slope", "take_piece"),
    "route": ("Routed", "routed"),
    "rows": ("add_up",),
}

__all__ = [
    "Routed",
    "add_up",
    "piece_slope",
    "routed",
    "swiglu",
    "swiglu_slopes",
    "take_piece",
    "to_fp8",
]

__getattr__ = lazy_names(__name__, _HOMES)
