"""LossTerms: what a batch cost, as sums and counts per modality, never means: sums add up over ranks and
micro-batches.
"""

# B rows, S sequence, M tags

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_most.vocab import TAG_NAMES


@dataclass(frozen=True)
class LossTerms:
    """Cross-entropy in nats, by the tag of the token that was to be predicted."""

    loss_sum_M: torch.Tensor
    weight_sum_M: torch.Tensor

    def __add__(self, other: LossTerms) -> LossTerms:
        return LossTerms(self.loss_sum_M + other.loss_sum_M, self.weight_sum_M + other.weight_sum_M)

    def detach(self) -> LossTerms:
        """The same numbers, without their history."""
        return LossTerms(self.loss_sum_M.detach(), self.weight_sum_M)

    @property
    def mean(self) -> torch.Tensor:
        """Over all tokens that count."""
        return self.loss_sum_M.sum() / self.weight_sum_M.sum().clamp(min=1e-20)

    @property
    def means(self) -> dict[str, float]:
        """By modality, those that occurred."""
        pairs = zip(TAG_NAMES, self.loss_sum_M.tolist(), self.weight_sum_M.tolist(), strict=True)
        return {name: loss / weight for name, loss, weight in pairs if weight}

    @property
    def weights(self) -> dict[str, float]:
        """Summed loss weights by modality, those that occurred."""
        return {name: weight for name, weight in zip(TAG_NAMES, self.weight_sum_M.tolist(), strict=True) if weight}


def loss_terms(loss_BS: torch.Tensor, weights_BS: torch.Tensor, label_tags_BS: torch.Tensor) -> LossTerms:
    """Loss per token -> sums per tag of the label; differentiable in the losses."""
    tags = label_tags_BS.flatten()
    weights = weights_BS.flatten().to(torch.float32)
    zeros = torch.zeros(len(TAG_NAMES), dtype=torch.float32, device=loss_BS.device)
    return LossTerms(
        loss_sum_M=zeros.index_add(0, tags, loss_BS.flatten().float() * weights),
        weight_sum_M=zeros.index_add(0, tags, weights),
    )
