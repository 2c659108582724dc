"""The all-to-all dispatcher with two things mended and one left out.

Shared-only tokens choose no expert, but Core announces top_k rows for every token; 0.19's permutation then invents
rows ("split_sizes expects split_sizes to sum exactly"). And without CUDA the split sizes stay tensors, where gloo
wants lists. Where a rank has all experts whole, rows come out of the first permutation as the experts want them; Core
sends them to itself, and cuts them apart and lays them together again before and behind the experts all the same, each
a copy of all rows.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe import moe_layer
from megatron.core.transformer.moe.moe_utils import permute
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher


class TrueCountAlltoAll(MoEAlltoAllTokenDispatcher):
    """Stock, with the true number of rows and list split sizes on a CPU."""

    def preprocess(self, routing_map: torch.Tensor) -> torch.Tensor:
        counts = super().preprocess(routing_map)
        self.num_out_tokens = routing_map.sum()
        self._maybe_update_cuda_sync_point("before_permutation_1")  # the permutation needs the number on the host
        return counts

    def dispatch_preprocess(
        self, hidden_states: torch.Tensor, routing_map: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._has_all_experts():
            return super().dispatch_preprocess(hidden_states, routing_map, probs)
        self.hidden_shape = hidden_states.shape
        rows = hidden_states.view(-1, hidden_states.size(-1))
        self.hidden_shape_before_permute, self.probs, self.routing_map = rows.shape, probs, routing_map
        self.tokens_per_expert = routing_map.sum(0).cpu()
        rows, probs, self.reversed_local_input_permutation_mapping, *_ = permute(  # 0.19 gives two more
            rows, routing_map, probs=probs, num_out_tokens=int(self.tokens_per_expert.sum()),
            fused=self.config.moe_permute_fusion,
        )  # fmt: skip
        return rows, probs

    def dispatch_postprocess(self, global_input_tokens: torch.Tensor, global_probs: torch.Tensor) -> Any:
        if not self._has_all_experts():
            return super().dispatch_postprocess(global_input_tokens, global_probs)
        return global_input_tokens, self.tokens_per_expert, global_probs

    def combine_preprocess(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states if self._has_all_experts() else super().combine_preprocess(hidden_states)

    def token_combine(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states if self._has_all_experts() else super().token_combine(hidden_states, *args, **kwargs)

    def _has_all_experts(self) -> bool:
        """And whole, and nothing else to do with rows than to sort them."""
        return (
            self.tp_size == self.ep_size == 1 and self.shared_experts is None and not self.drop_and_pad
            and not self.config.moe_router_padding_for_quantization and self.config.cuda_graph_impl == "none"
        )  # fmt: skip

    def token_dispatch(self, *args: Any, **kwargs: Any) -> Any:
        if self._has_all_experts():
            return args
        for name in ("input_splits", "output_splits"):
            splits = getattr(self, name)
            if torch.is_tensor(splits) and splits.device.type == "cpu":
                setattr(self, name, splits.tolist())
        return super().token_dispatch(*args, **kwargs)


def install() -> None:
    """MoELayer looks the class up by name in its module, and takes no other by configuration."""
    moe_layer.MoEAlltoAllTokenDispatcher = TrueCountAlltoAll
