"""Core attention on torch's SDPA, with what Core's DotProductAttention lacks without Transformer Engine.

Key and value heads of different widths (MLA: 192 and 128), fewer key/value heads than query heads, context
parallelism (keys and values gathered, zigzag positions), and packed documents: `attention_mask` is [B, S] document
numbers of the WHOLE sequence (or None), and no token sees another document. A Lookback there is a step of generation.

Packed documents are a mask of all pairs of positions to torch's SDPA, which no flash kernel takes. On a GPU, in half
precision and without context parallelism, they are laid end to end instead, each as long as it is (`varlen_attn`):
pairs in different documents cost nothing.
"""

# S query positions on this rank, T key positions, B batch, H heads, D head width, N = B*S

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from torch.nn.attention import SDPBackend

from megatron_most.runtime import gpu_generation
from megatron_most.upstream.context import zigzag
from megatron_most.upstream.lookback import Lookback, attend

WIDEST = 256
"""Heads that torch's flash kernel takes, in multiples of 8."""


_WORTH = {SDPBackend.MATH.value: 0, SDPBackend.EFFICIENT_ATTENTION.value: 1}
"""Of torch's ways to attend, the slow ones, the slowest first; the others count 2."""


class SdpaAttention(MegatronModule):
    """Causal attention for training and plain evaluation; softmax in float32 inside torch's kernels."""

    def __init__(
        self, config: Any, layer_number: int, attn_mask_type: Any = None, attention_type: str = "self",
        softmax_scale: float | None = None, pg_collection: ProcessGroupCollection | None = None, **_: Any,
    ) -> None:  # fmt: skip
        super().__init__(config)
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale  # None: 1/sqrt(head width)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
        self.context = groups.cp
        self.lays_end_to_end = False
        """Packed documents by `varlen_attn`, where `has_varlen` says so."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | Lookback | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """[S, B, H, D] each (key and value may have fewer heads) -> [S, B, H*Dv]."""
        if isinstance(attention_mask, Lookback):
            return attend(query, key, value, attention_mask, self.layer_number, self.softmax_scale)
        ranks, rank = self.context.size(), self.context.rank()
        if ranks > 1:
            key, value = (
                gather_from_sequence_parallel_region(x.contiguous(), group=self.context) for x in (key, value)
            )
        fits = query.size(-1) % 8 == 0 and query.size(-1) <= WIDEST
        if attention_mask is not None and ranks == 1 and fits and self.lays_end_to_end:
            return end_to_end(query, key, value, attention_mask, self.softmax_scale)
        mask = None
        if ranks > 1 or attention_mask is not None:
            positions_T = zigzag(key.size(0), ranks, key.device)
            positions_S = positions_T.view(ranks, -1)[rank]
            mask = positions_S[:, None] >= positions_T[None, :]  # [S, T]
            if attention_mask is not None:
                documents_B1S, documents_B1T = (
                    attention_mask[:, None, positions_S],
                    attention_mask[:, None, positions_T],
                )
                mask = mask & (documents_B1S.unsqueeze(-1) == documents_B1T.unsqueeze(-2))  # [B, 1, S, T]
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        return attended(query, key, value, mask, self.softmax_scale).permute(2, 0, 1, 3).flatten(2)


def has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's flash kernel runs there."""
    return dtype in (torch.bfloat16, torch.float16) and gpu_generation(device) >= (8, 0)


def end_to_end(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents_BS: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """[S, B, H, D] each -> [S, B, H*Dv]; causal inside each document."""
    from torch.nn.attention.varlen import varlen_attn  # brings torch's compiler, seconds that a CPU need not wait

    length, batch, heads, width = query.shape
    starts, longest = document_starts(documents_BS)
    wide = F.pad(value, (0, width - value.size(-1))) if value.size(-1) < width else value
    ours = [x.transpose(0, 1).flatten(0, 1) for x in (query, key, wide)]  # [N, H, D]; a view where there is one row
    out_NHD = varlen_attn(
        ours[0], ours[1], ours[2], starts, starts, longest, longest, scale=scale, window_size=(-1, 0),
        enable_gqa=key.size(2) != heads,
    )  # fmt: skip
    assert isinstance(out_NHD, torch.Tensor)  # a pair only where more is asked for
    return out_NHD[..., : value.size(-1)].reshape(batch, length, -1).transpose(0, 1)


def document_starts(documents_BS: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Where documents begin, rows laid end to end, and behind them the end, int32; and how long the longest is.

    Kept with the tensor: all layers of a micro-batch ask, and the longest is a wait for the device.
    """
    kept: tuple[torch.Tensor, int] | None = getattr(documents_BS, "_starts", None)
    if kept is None:
        is_first_BS = torch.ones_like(documents_BS, dtype=torch.bool)
        is_first_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
        starts = F.pad(is_first_BS.flatten().nonzero()[:, 0], (0, 1), value=documents_BS.numel())
        kept = starts.to(torch.int32), int(starts.diff().max())
        documents_BS._starts = kept  # type: ignore[attr-defined]
    return kept


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float | None
) -> torch.Tensor:
    """[B, H, S, D] each -> [B, H, S, Dv]; causal where there is no mask.

    No fused kernel of a CPU, and not all of a GPU, take values narrower than keys, as MLA's are; then torch takes its
    plain path, which writes every score to memory, or on a GPU a slow kernel. There, values are widened with zeros, and
    what those give is cut off: on one core forward and backward take 0.6 of the time at 256 tokens, and 0.35 at 1,024.
    """
    is_causal, is_grouped = mask is None, key.size(1) != query.size(1)
    width = value.size(-1)
    if width < key.size(-1):

        def worth(values: torch.Tensor) -> int:
            chosen = torch._fused_sdp_choice(
                query, key, values, mask, 0.0, is_causal, scale=scale, enable_gqa=is_grouped
            )
            return _WORTH.get(chosen, 2)

        if worth(value) < 2 and worth(key) > worth(value):  # keys are what widened values look like
            value = F.pad(value, (0, key.size(-1) - width))
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=is_grouped
    )
    return out[..., :width]
