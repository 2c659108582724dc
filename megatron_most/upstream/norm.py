"""RMSNorm for the local spec: Core's WrappedTorchNorm asserts that sequence parallelism is off.

Under sequence parallelism each tensor-parallel rank sees its own tokens, so the weight is marked `sequence_parallel`:
whoever reduces gradients must sum it over tensor-parallel ranks.

torch has one kernel for it on a GPU. On a CPU it composes it of small ones, each over all hidden states; there ours
keeps what the backward pass needs, goes over them nine times in all and takes 0.6 to 0.7 of torch's time in a step of
training. Without a backward pass torch's takes less.
"""

from __future__ import annotations

from typing import Any

import torch


class RMSNorm(torch.nn.RMSNorm):
    """Takes and ignores whatever else Core's versions pass to a norm."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Not by grad mode: recomputed layers run first without gradients, and must round as they do the second time.
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and self.weight.dtype == torch.float32
        if not (plain and self.training):
            return super().forward(x)
        return _Norm.apply(x, self.weight, self.eps)


class LatentNorm(RMSNorm):
    """The norm on MLA's compressed keys, values and queries: 1e-6 whatever the model's norm_eps, as DeepSeek-V2 has
    it.
    """

    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__(config, hidden_size, eps=1e-6)


class _Norm(torch.autograd.Function):
    """x / sqrt(mean x^2 + eps) * weight, over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        squares = torch.linalg.vecdot(x, x).unsqueeze(-1)
        scale = squares.div_(x.size(-1)).add_(eps).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        unit, scale, weight = ctx.saved_tensors
        of_weight = (slope * unit).sum_to_size(weight.shape) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        of_unit = slope * weight
        along = torch.linalg.vecdot(of_unit, unit).unsqueeze(-1).div_(unit.size(-1))
        return of_unit.addcmul_(unit, along, value=-1).mul_(scale), of_weight, None
