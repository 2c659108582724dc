"""LossTerms: what a batch cost, as sums and counts per task and modality, never means: sums add up over ranks and
micro-batches.
"""

# B rows, S sequence, M tags, J tasks by number, with a last place for tokens whose task is not known

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_most.data import MAX_TASKS
from megatron_most.vocab import TAG_NAMES

SHAPE = (MAX_TASKS + 1, len(TAG_NAMES))


@dataclass(frozen=True)
class LossTerms:
    """Cross-entropy in nats, by the task of the document and the tag of the token that was to be predicted."""

    loss_sum_JM: torch.Tensor
    weight_sum_JM: torch.Tensor

    def __add__(self, other: LossTerms) -> LossTerms:
        return LossTerms(self.loss_sum_JM + other.loss_sum_JM, self.weight_sum_JM + other.weight_sum_JM)

    def detach(self) -> LossTerms:
        """The same numbers, without their history."""
        return LossTerms(self.loss_sum_JM.detach(), self.weight_sum_JM)

    def cpu(self) -> LossTerms:
        """The same numbers on the host, at the price of one wait for the device."""
        return LossTerms(*torch.stack([self.loss_sum_JM, self.weight_sum_JM]).cpu())

    @property
    def mean(self) -> torch.Tensor:
        """Over all tokens that count."""
        return self.loss_sum_JM.sum() / self.weight_sum_JM.sum().clamp(min=1e-20)

    @property
    def means(self) -> dict[str, float]:
        """By modality, those that occurred."""
        return {TAG_NAMES[tag]: mean for tag, mean in self._means(0)}

    @property
    def task_means(self) -> dict[int, float]:
        """By the task's number, those that occurred; -1: of tokens whose task is not known."""
        return {-1 if task == MAX_TASKS else task: mean for task, mean in self._means(1)}

    @property
    def weights(self) -> dict[str, float]:
        """Summed loss weights by modality, those that occurred."""
        pairs = zip(TAG_NAMES, self.weight_sum_JM.sum(0).tolist(), strict=True)
        return {name: weight for name, weight in pairs if weight}

    def _means(self, over: int) -> list[tuple[int, float]]:
        """(place, mean) along the axis that is left when summing over the other."""
        losses, weights = self.loss_sum_JM.sum(over).tolist(), self.weight_sum_JM.sum(over).tolist()
        return [(at, loss / weight) for at, (loss, weight) in enumerate(zip(losses, weights, strict=True)) if weight]


def loss_terms(
    loss_BS: torch.Tensor, weights_BS: torch.Tensor, label_tags_BS: torch.Tensor, tasks_BS: torch.Tensor
) -> LossTerms:
    """Loss per token -> sums per task, and per tag of the label; differentiable in the losses."""
    tasks = torch.where(tasks_BS < 0, MAX_TASKS, tasks_BS)
    places = (tasks * len(TAG_NAMES) + label_tags_BS).flatten()
    weights = weights_BS.flatten().to(torch.float32)
    zeros = torch.zeros(SHAPE[0] * SHAPE[1], dtype=torch.float32, device=loss_BS.device)
    return LossTerms(
        loss_sum_JM=zeros.index_add(0, places, loss_BS.flatten().float() * weights).view(SHAPE),
        weight_sum_JM=zeros.index_add(0, places, weights).view(SHAPE),
    )
