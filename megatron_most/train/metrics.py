"""What a run tells: one JSON line a step in metrics.jsonl, one line on the console now and then. Rank 0 only."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

from megatron_most.engine import StepReport
from megatron_most.runtime import get_logger, get_rank, write_atomically

_EVERY_S = 5.0
_log = get_logger(__name__)


class Metrics:
    """Appends to the run's file. After a resume, lines of steps that are taken again are cut off first."""

    def __init__(self, folder: Path, first: int, steps: int) -> None:
        self._steps, self._file = steps, None if get_rank() else _cut_to(folder / "metrics.jsonl", first)
        self._start, self._first = time.monotonic(), first
        self._last = self._shown = self._start

    def step(self, step: int, report: StepReport, tokens: int, **more: Any) -> None:
        """One step, counted from 0; `tokens`: all that went through the model, pads apart."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        if self._file is None:
            return
        line = {
            "step": step,
            "loss": report.loss,
            **{f"loss/{name}": loss for name, loss in report.losses.items()},
            "gradient_norm": report.gradient_norm,
            "skipped": report.is_skipped,
            "tokens": tokens,
            "trained": sum(report.num_tokens.values()),
            "seconds": round(seconds, 4),
            **more,
        }
        self._file.write(json.dumps(line) + "\n")
        if now - self._shown >= _EVERY_S or step in (self._first, self._steps - 1):
            self._shown = now
            left = (now - self._start) / (step + 1 - self._first) * (self._steps - step - 1)
            losses = "  ".join(f"{name} {loss:.3f}" for name, loss in report.losses.items())
            clock = f"{int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d}"
            _log.info(
                "step %d/%d  %s  norm %.2f  lr %.2e  %.0f tok/s  %s left",
                *(step + 1, self._steps, losses, report.gradient_norm, more.get("learning_rate", 0.0)),
                *(tokens / max(seconds, 1e-9), clock),
            )

    def validation(self, step: int, task: str, losses: dict[str, float]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "validation": task, **losses}) + "\n")
            _log.info("step %d  validation %s  %s", step, task, "  ".join(f"{n} {v:.3f}" for n, v in losses.items()))

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _cut_to(path: Path, first: int) -> TextIO:
    """Open for appending, without the lines of steps from `first` on, and without a torn last line."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < first:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                break
        # As a new file: an older attempt that still lives has the old one open, and may write into that.
        write_atomically(path, "".join(f"{line}\n" for line in kept))
    return open(path, "a", encoding="utf-8")
