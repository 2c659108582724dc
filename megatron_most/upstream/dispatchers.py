"""The all-to-all dispatcher with two things mended.

Shared-only tokens choose no expert, but Core announces top_k rows for every token; 0.19's permutation then invents
rows ("split_sizes expects split_sizes to sum exactly"). And without CUDA the split sizes stay tensors, where gloo
wants lists.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe import moe_layer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher


class TrueCountAlltoAll(MoEAlltoAllTokenDispatcher):
    """Stock, with the true number of rows and list split sizes on a CPU."""

    def preprocess(self, routing_map: torch.Tensor) -> torch.Tensor:
        counts = super().preprocess(routing_map)
        self.num_out_tokens = routing_map.sum()
        self._maybe_update_cuda_sync_point("before_permutation_1")  # the permutation needs the number on the host
        return counts

    def token_dispatch(self, *args: Any, **kwargs: Any) -> Any:
        for name in ("input_splits", "output_splits"):
            splits = getattr(self, name)
            if torch.is_tensor(splits) and splits.device.type == "cpu":
                setattr(self, name, splits.tolist())
        return super().token_dispatch(*args, **kwargs)


def install() -> None:
    """MoELayer looks the class up by name in its module, and takes no other by configuration."""
    moe_layer.MoEAlltoAllTokenDispatcher = TrueCountAlltoAll
