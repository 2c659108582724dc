"""The loop: get this step's micro-batches, take the step, report. Everything else is behind the engine.

`batches_of(step)` is a pure function of the step (and of the seed behind it), so any step can be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_most.data import PackedBatch
from megatron_most.engine import Engine, StepReport
from megatron_most.errors import MostError


def train(
    engine: Engine,
    batches_of: Callable[[int], Sequence[PackedBatch]],
    steps: int,
    learning_rate: float,
    on_report: Callable[[int, StepReport], None],
) -> None:
    """`steps` optimizer steps, linearly down to 0 without warm-up. All ranks call it."""
    for step in range(steps):
        report = engine.step(batches_of(step), learning_rate * (1 - step / steps))
        if report.is_skipped:
            raise MostError(
                f"step {step}: the gradient is not finite (loss {report.loss:.4f}); lower train.learning_rate"
            )
        on_report(step, report)
