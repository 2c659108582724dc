"""The all-to-all dispatcher with two things mended and one left out.

Shared-only tokens choose no expert, but Core announces top_k rows for every token; 0.19's permutation then invents
rows ("split_sizes expects split_sizes to sum exactly"). And without CUDA the split sizes stay tensors, where gloo
wants lists. Where a rank has all experts whole, rows come out of the first permutation as the experts want them; Core
cuts them apart and lays them together again before and behind the experts all the same, each a copy of all rows.
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

    def dispatch_postprocess(self, global_input_tokens: torch.Tensor, global_probs: torch.Tensor) -> Any:
        if not self._has_all_experts():
            return super().dispatch_postprocess(global_input_tokens, global_probs)
        counts: torch.Tensor = self.tokens_per_expert  # type: ignore[has-type]
        for point in ("before_permutation_2", "before_finish"):
            counts = self._maybe_dtoh_and_synchronize(point, counts)
        self.tokens_per_expert = None
        return global_input_tokens, counts, global_probs

    def combine_preprocess(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states if self._has_all_experts() else super().combine_preprocess(hidden_states)

    def _has_all_experts(self) -> bool:
        """And whole, and nothing else to do between the permutations."""
        return self.tp_size == self.ep_size == 1 and self.shared_experts is None and not self.drop_and_pad

    def token_dispatch(self, *args: Any, **kwargs: Any) -> Any:
        for name in ("input_splits", "output_splits"):
            splits = getattr(self, name)
            if torch.is_tensor(splits) and splits.device.type == "cpu":
                setattr(self, name, splits.tolist())
        return super().token_dispatch(*args, **kwargs)


def install() -> None:
    """MoELayer looks the class up by name in its module, and takes no other by configuration."""
    moe_layer.MoEAlltoAllTokenDispatcher = TrueCountAlltoAll
