"""The all-to-all dispatcher with two things mended, one done another way and one left out.

Shared-only tokens choose no expert, but Core announces top_k rows for every token; 0.19's permutation then invents
rows ("split_sizes expects split_sizes to sum exactly"). And without CUDA the split sizes stay tensors, where gloo
wants lists. A token's rows are added up by one sum per token, whose gradient is a copy, and the other way round; Core
scatters them, one addition at a time, in the precision of the rows and in any order. Where a rank has all experts
whole, rows come out of the first permutation as the experts want them; Core sends them to itself, and cuts them apart
and lays them together again before and behind the experts all the same, each a copy of all rows.

A GPU is waited for once a layer: for how many rows there are, and how many go where. Core's own permutation waits
twice more.
"""

# T tokens, E experts, R rows: a token for each expert that it chose, D width

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe import moe_layer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

from megatron_most import kernels


class TrueCountAlltoAll(MoEAlltoAllTokenDispatcher):
    """Stock, with the true number of rows and list split sizes on a CPU."""

    is_fused = False
    """Rows are added up by our kernel. Set where the device has it."""

    def preprocess(self, routing_map: torch.Tensor) -> torch.Tensor:
        counts = super().preprocess(routing_map)
        self.num_out_tokens = routing_map.sum()
        self._maybe_update_cuda_sync_point("before_permutation_1")  # the permutation needs the number on the host
        return counts

    def dispatch_preprocess(
        self, hidden_states: torch.Tensor, routing_map: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.hidden_shape, self.probs, self.routing_map = hidden_states.shape, probs, routing_map
        if self._has_all_experts():
            self.tokens_per_expert = routing_map.sum(0).cpu()
            self.num_out_tokens = self.tokens_per_expert.sum()
        else:
            self.tokens_per_expert = self.preprocess(routing_map)
            if self.shared_experts is not None:
                self.shared_experts.pre_forward_comm(hidden_states)
            self.tokens_per_expert = self._maybe_dtoh_and_synchronize("before_permutation_1", self.tokens_per_expert)
        tokens_TD = hidden_states.view(-1, hidden_states.size(-1))
        self.hidden_shape_before_permute = tokens_TD.shape
        self._order, choice_R = ordered(routing_map, int(self.num_out_tokens), self.is_fused)
        self.reversed_local_input_permutation_mapping = self._order.token_R
        return _Spread.apply(tokens_TD, self._order), probs.t().reshape(-1).index_select(0, choice_R)

    def dispatch_postprocess(self, global_input_tokens: torch.Tensor, global_probs: torch.Tensor) -> Any:
        if not self._has_all_experts():
            return super().dispatch_postprocess(global_input_tokens, global_probs)
        return global_input_tokens, self.tokens_per_expert, global_probs

    def combine_preprocess(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states if self._has_all_experts() else super().combine_preprocess(hidden_states)

    def token_combine(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states if self._has_all_experts() else super().token_combine(hidden_states, *args, **kwargs)

    def combine_postprocess(self, permutated_local_input_tokens: torch.Tensor) -> torch.Tensor:
        if self.shared_experts is not None:  # behind the exchange of tokens: Core's versions differ in when
            return super().combine_postprocess(permutated_local_input_tokens)
        return _Gather.apply(permutated_local_input_tokens, self._order).view(self.hidden_shape)

    def token_dispatch(self, *args: Any, **kwargs: Any) -> Any:
        if self._has_all_experts():
            return args
        for name in ("input_splits", "output_splits"):
            splits = getattr(self, name)
            if torch.is_tensor(splits) and splits.device.type == "cpu":
                setattr(self, name, splits.tolist())
        return super().token_dispatch(*args, **kwargs)

    def _has_all_experts(self) -> bool:
        """And whole, and nothing else to do with rows than to sort them."""
        return self.tp_size == self.ep_size == 1 and self.shared_experts is None


class Order(NamedTuple):
    """Rows by slot of their expert, and by token in it."""

    token_R: torch.Tensor
    rows_R: torch.Tensor
    """The rows of token 0, of token 1, ..."""
    starts_T: torch.Tensor
    """Where a token's begin in `rows_R`; a shared-only token has none."""
    is_fused: bool


def ordered(map_TE: torch.Tensor, num_rows: int, is_fused: bool) -> tuple[Order, torch.Tensor]:
    """And where each row's choice stands in the map turned, [E, T]."""
    choice_R = torch.nonzero_static(map_TE.t().reshape(-1), size=num_rows)[:, 0]
    token_R = choice_R % map_TE.size(0)
    count_T = map_TE.sum(1)
    return Order(token_R, token_R.argsort(stable=True), count_T.cumsum(0) - count_T, is_fused), choice_R


class _Spread(torch.autograd.Function):
    """Tokens to rows."""

    @staticmethod
    def forward(ctx: Any, tokens_TD: torch.Tensor, order: Order) -> torch.Tensor:
        ctx.order = order
        return tokens_TD.index_select(0, order.token_R)

    @staticmethod
    def backward(ctx: Any, slope_RD: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return _added_up(slope_RD, ctx.order), None


class _Gather(torch.autograd.Function):
    """Rows to tokens."""

    @staticmethod
    def forward(ctx: Any, rows_RD: torch.Tensor, order: Order) -> torch.Tensor:
        ctx.order = order
        return _added_up(rows_RD, order)

    @staticmethod
    def backward(ctx: Any, slope_TD: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return slope_TD.index_select(0, ctx.order.token_R), None


def _added_up(rows_RD: torch.Tensor, order: Order) -> torch.Tensor:
    if order.is_fused:
        return kernels.add_up(rows_RD, order.rows_R, order.starts_T)
    return F.embedding_bag(order.rows_R, rows_RD, order.starts_T, mode="sum")


def install() -> None:
    """MoELayer looks the class up by name in its module, and takes no other by configuration."""
    moe_layer.MoEAlltoAllTokenDispatcher = TrueCountAlltoAll
