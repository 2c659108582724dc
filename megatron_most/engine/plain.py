"""The plain engine: torch's AdamW on every rank's own weights, for reading, for tests, and for runs that need no ZeRO.

It works in every layout. Below float32 it keeps float32 masters: the optimizer moves those, the model gets rounded
copies. Gradients add up in the model's precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import MappingProxyType

import torch

from megatron_most.config import Plan, share_of_peak
from megatron_most.data import PackedBatch
from megatron_most.engine.check import check_together
from megatron_most.engine.gradients import clip_gradients, gradient_squares, reduce_gradients, whole_gradients
from megatron_most.engine.interface import Lap, ReadLocal, Scaler, StepReport, no_lap, roots
from megatron_most.engine.masters import Masters
from megatron_most.engine.schedule import logits_at, run_micro_batches
from megatron_most.errors import ConfigError
from megatron_most.model import LossTerms, MostModel, part_names, part_of_weights
from megatron_most.moe import move_biases
from megatron_most.parallel import Groups


class PlainEngine:
    """See interface.Engine."""

    def __init__(self, model: MostModel, plan: Plan, groups: Groups) -> None:
        engine = plan.config.engine
        if engine.kind != "plain":
            raise ConfigError("engine.kind", engine.kind, "this is the plain engine", 'set engine.kind = "plain"')
        if engine.precision == "fp16":
            raise ConfigError("engine.precision", "fp16", "the plain engine does not scale losses", "use bf16 or fp32")
        self.model, self.plan, self.groups = model, plan, groups
        self._updates = 0
        self.parts, self.part_of = part_names(plan), part_of_weights(model, plan)
        self.whole = Masters(model, plan.config.train)
        self.weights = self.whole.weights

    def step(
        self, batches: Sequence[PackedBatch], learning_rate: float, *, lap: Lap = no_lap, look: bool = False
    ) -> StepReport:
        """See interface.Engine."""
        batches = list(batches)
        check_together(batches, self.plan, self.groups)
        lap("check")
        self.model.train()
        for weight in self.weights:
            weight.grad = None
        terms = run_micro_batches(self.model, batches, self.groups)
        lap("forward_backward")
        reduce_gradients(self.weights, self.groups)
        gradients, device = whole_gradients(self.weights, self.groups), self.weights[0].device
        squares = gradient_squares(gradients, self.part_of, len(self.parts), self.groups, device).cpu()
        norm = math.sqrt(float(squares.sum()))
        if math.isfinite(norm):
            clip_gradients(self.weights, norm, self.plan.config.train.clip)
            self._move(learning_rate)
            self._updates += 1
            move_biases(self.model, self.groups.tokens, share_of_peak(self.plan.config.train, learning_rate))
        report = StepReport.of(terms, norm, not math.isfinite(norm), roots(self.parts, squares) if look else {})
        lap("optimizer")
        return report

    @property
    def updates(self) -> int:
        """See interface.Engine."""
        return self._updates

    def state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """See interface.Engine."""
        return self.whole.state()

    def load_state(self, read: ReadLocal, updates: int, scaler: Scaler = MappingProxyType({})) -> None:
        """See interface.Engine."""
        self._updates = updates
        self.whole.load_state(read, updates)

    @property
    def scaler(self) -> dict[str, float]:
        """See interface.Engine."""
        return {}

    @torch.no_grad()
    def evaluate(self, batches: Sequence[PackedBatch]) -> LossTerms:
        """See interface.Engine."""
        batches = list(batches)
        check_together(batches, self.plan, self.groups)
        self.model.eval()
        return run_micro_batches(self.model, batches, self.groups, forward_only=True)

    @torch.no_grad()
    def logits(self, batch: PackedBatch, places_B: torch.Tensor) -> torch.Tensor:
        """See interface.Engine."""
        check_together([batch], self.plan, self.groups)
        self.model.eval()
        return logits_at(self.model, self.model, batch, places_B, self.groups)

    def _move(self, learning_rate: float) -> None:
        self.whole.take_gradients()
        for group in self.whole.optimizer.param_groups:
            group["lr"] = learning_rate
        self.whole.optimizer.step()
        self.whole.give_back()
