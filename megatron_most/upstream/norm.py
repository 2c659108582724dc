"""RMSNorm for the local spec: Core's WrappedTorchNorm asserts that sequence parallelism is off.

Under sequence parallelism each tensor-parallel rank sees its own tokens, so the weight is marked `sequence_parallel`:
whoever reduces gradients must sum it over tensor-parallel ranks.
"""

from __future__ import annotations

from typing import Any

import torch


class RMSNorm(torch.nn.RMSNorm):
    """Takes and ignores whatever else Core's versions pass to a norm."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class LatentNorm(RMSNorm):
    """The norm on MLA's compressed keys, values and queries: 1e-6 whatever the model's norm_eps, as DeepSeek-V2 has
    it.
    """

    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__(config, hidden_size, eps=1e-6)
