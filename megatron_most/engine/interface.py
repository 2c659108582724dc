"""What a training loop may ask of an engine, and what it gets back: one optimizer step as plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_most.data import PackedBatch
from megatron_most.model import LossTerms, MostModel

ReadLocal = Callable[[str, str, Sequence[int]], torch.Tensor | None]
"""(kind, local name, shape) -> the tensor on the host; None where there is none of that kind."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, over the global batch; the same on every rank."""

    loss: float
    """Mean cross-entropy in nats."""
    losses: dict[str, float]
    """The same by modality of the predicted token; modalities that did not occur are missing."""
    num_tokens: dict[str, float]
    """Summed loss weights by modality."""
    gradient_norm: float
    """Before clipping."""
    is_skipped: bool
    """The gradient was not finite, so the weights stayed as they were."""

    @classmethod
    def of(cls, terms: LossTerms, norm: float, is_skipped: bool) -> StepReport:
        """From a step's global sums."""
        return cls(
            loss=float(terms.mean),
            losses=terms.means,
            num_tokens=terms.weights,
            gradient_norm=norm,
            is_skipped=is_skipped,
        )


class Engine(Protocol):
    """Turns micro-batches into new weights. All ranks call every method, each with its own data rank's batches."""

    model: MostModel

    def step(self, batches: Sequence[PackedBatch], learning_rate: float) -> StepReport:
        """One optimizer step over this rank's micro-batches (host tensors, equal in number and shape on all ranks)."""
        ...

    def state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """(kind, local name, tensor) of all there is to save: float32 masters and buffers ("weight"), moments
        ("exp_avg", "exp_avg_sq"). All ranks go through it together; a tensor is valid until the next.
        """
        ...

    def load_state(self, read: ReadLocal, updates: int) -> None:
        """Masters and moments from a checkpoint, into an engine built on a model that has its weights; `updates`: how
        many steps the optimizer has taken.
        """
        ...

    @property
    def updates(self) -> int:
        """Steps the optimizer has taken; skipped ones do not count."""
        ...

    def evaluate(self, batches: Sequence[PackedBatch]) -> LossTerms:
        """Losses over all ranks' batches, without learning."""
        ...

    def predict(self, batch: PackedBatch, places_B: torch.Tensor) -> torch.Tensor:
        """The likeliest token after each row's given place, on the host of every rank. All pass the same batch."""
        ...
