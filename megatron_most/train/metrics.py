"""What a run tells: a line a step in metrics.jsonl and on boards, a line on the console now and then. Rank 0 tells; the
others take part in what has to be gathered.

A line's times are those since the line before: a checkpoint or a validation between two steps is told with the second.
They add up to `seconds`. Tokens per second and the MFU are over the step without these two. Some steps are looked at
more closely (telemetry.every): gradient norms by part of the model, memory, the experts' load since the last look, and
their groups' mass and entropy in this step.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_most.config import ExpertLoad, count_flops, count_parameters
from megatron_most.data import Step
from megatron_most.engine import Engine, Session, StepReport
from megatron_most.moe import LayerTelemetry, collect, measure_closely, routers
from megatron_most.runtime import Clock, agree, get_logger, writing
from megatron_most.train.board import Board, flat_numbers, open_boards
from megatron_most.train.console import console_line
from megatron_most.train.forecast import peak_flops
from megatron_most.train.history import FILE, History, Line, productive_seconds, step_seconds
from megatron_most.upstream import find_versions

_EVERY_S = 5.0
_RECENT = 50  # steps whose median says what one takes
_LOOKS = 50  # the last ones, whose loads say how busy an expert is
_log = get_logger(__name__)


class Metrics:
    """Made by all ranks together, before the loop; all of them call `step`."""

    def __init__(
        self, session: Session, engine: Engine, tasks: Sequence[str], folder: Path, first: int, began: float
    ) -> None:
        """`tasks`: names by number; `first`: the step that is taken next; `began`: the time of day when this attempt
        did.
        """
        self._session, self._tasks, self._done = session, tasks, first
        self._train, self._telemetry = session.plan.config.train, session.plan.config.telemetry
        self._routers = routers(engine.model)
        self._flops = count_flops(session.plan)
        peak = peak_flops(session.plan, session.device)
        self._peak = None if peak is None else peak * session.ranks.world_size
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._loads: deque[dict[int, tuple[int, ...]]] = deque(maxlen=_LOOKS)
        self._shown = 0.0
        self._history: History | None = None
        self._boards: list[Board] = []
        wrong = None
        if session.ranks.rank == 0:
            try:
                self._history = self._open(folder, first, began)
            except Exception as error:  # agree() raises it again, on every rank
                wrong = error
        agree(wrong)
        measure_closely(self._routers, self.looks_at(first))
        self._clock = Clock(session.device)

    def _open(self, folder: Path, first: int, began: float) -> History:
        config = self._session.plan.config
        history = History(folder / FILE, first)
        history.began = began if history.began is None else history.began
        size = count_parameters(self._session.plan)
        history.append(
            {
                "attempt": history.attempts + 1,
                "step": first,
                "steps": config.train.steps,
                "at": began,
                "ready": time.time(),
                "ranks": self._session.ranks.world_size,
                "nodes": self._session.ranks.launch.num_nodes,
                "layout": str(self._session.plan.layout),
                "device": self._session.device.name,
                "versions": find_versions(),
                "parameters": {"total": size.total, "active": size.active},
                "peak_flops": self._peak,
            }
        )
        with writing(folder):
            self._boards = open_boards(config, folder, first, history.began)
        return history

    def lap(self, name: str) -> None:
        """The time since the last lap went into what is named; see engine/interface.py for the engine's."""
        self._clock.lap(name)

    def looks_at(self, step: int) -> bool:
        """Whether this step is looked at closely: the engine must then measure norms by part."""
        every = self._telemetry.every
        return bool(every) and (step % every == 0 or step == self._train.steps - 1)

    def step(self, step: int, report: StepReport, data: Step, learning_rate: float) -> None:
        """One step, counted from 0."""
        self.lap("other")
        times = self._clock.take()
        seen = self._look(report) if self.looks_at(step) else {}
        if self._history is not None:
            self._tell(self._history, step, report, data, learning_rate, times, seen)
        self._done = step + 1
        measure_closely(self._routers, self.looks_at(step + 1))
        self.lap("telemetry")

    def _look(self, report: StepReport) -> Line:
        groups, device = self._session.groups, self._session.device
        memory = device.memory
        most = torch.tensor(list(memory.values()))
        dist.all_reduce(most, dist.ReduceOp.MAX)
        layers = collect(self._routers, groups.tokens, groups.stages)
        experts = {"experts": _compact(layers)} if layers else {}
        if layers:
            self._loads.append({layer.layer: layer.load for layer in layers})
        return {"norms": report.norms, "memory": dict(zip(memory, most.tolist(), strict=True)), **experts}

    def _tell(
        self, history: History, step: int, report: StepReport, data: Step, learning_rate: float,
        times: dict[str, float], seen: Line,
    ) -> None:  # fmt: skip
        times = {name: round(seconds, 6) for name, seconds in times.items()}
        tokens = sum(row.filled for row in data.rows)
        line: Line = {
            "step": step,
            "at": time.time(),
            "loss": report.loss,
            **{f"loss/{name}": loss for name, loss in report.losses.items()},
            **{f"task/{self._tasks[task]}": loss for task, loss in report.task_losses.items() if task >= 0},
            "gradient_norm": report.gradient_norm,
            "skipped": report.is_skipped,
            "learning_rate": learning_rate,
            "tokens": tokens,
            "trained": sum(report.num_tokens.values()),
            "seconds": round(sum(times.values()), 6),
            "times": times,
            "position": data.after.to_dict(),
        }
        took = max(step_seconds(line), 1e-9)
        line["tokens_per_second"] = round(tokens / took, 3)
        flops = self._flops.of_step(tokens, sum(row.pairs for row in data.rows))
        line["mfu"] = None if self._peak is None else flops / took / self._peak
        history.productive += productive_seconds(line)
        assert history.began is not None, "_open has set it"
        line["effective"] = round(history.productive / max(line["at"] - history.began, 1e-9), 6)
        line |= seen
        history.append(line)
        for board in self._boards:
            board.show(step, line["at"], flat_numbers(line))
        self._recent.append(line["seconds"])
        if (now := time.monotonic()) - self._shown >= _EVERY_S or step == self._train.steps - 1:
            left = statistics.median(self._recent) * (self._train.steps - step - 1)
            self._shown = now
            _log.info("%s", console_line(line, self._train.steps, left))

    def validation(self, step: int, task: str, losses: dict[str, float]) -> None:
        """A validation after `step` steps."""
        if self._history is None:
            return
        self._history.append({"step": step, "validation": task, "at": time.time(), **losses})
        for board in self._boards:
            values = {f"validation {task}/{name}": loss for name, loss in losses.items()}
            board.show(max(step - 1, 0), time.time(), values)  # with the last step before it
        _log.info("step %d  validation %s  %s", step, task, "  ".join(f"{n} {v:.3f}" for n, v in losses.items()))

    def expert_load(self) -> ExpertLoad | None:
        """Tokens of every expert over the last looks; None where there was no look yet."""
        moe = self._session.plan.moe
        if moe is None or not self._loads:
            return None
        layers = {
            layer: tuple(sum(of_look) for of_look in zip(*(loads[layer] for loads in self._loads), strict=True))
            for layer in self._loads[0]
        }
        groups = dict(zip(moe.group_names, moe.groups, strict=True))
        return ExpertLoad(step=self._done, groups=groups, layers=layers)

    def flush(self) -> None:
        """What was told is on its way to the disk."""
        for board in self._boards:
            board.flush()

    def close(self) -> None:
        """The attempt is over, however it went."""
        if self._history is None:
            return
        self.lap("other")
        times = {name: round(seconds, 6) for name, seconds in self._clock.take().items()}
        attempt = self._history.attempts + 1
        self._history.append({"ended": attempt, "step": self._done, "at": time.time(), "times": times})
        self._history.close()
        for board in self._boards:
            board.close()


def _compact(layers: Sequence[LayerTelemetry]) -> dict[str, Any]:
    """A row a layer, a column a group; null where a group had no tokens, or none while it was measured."""
    seen = [[group if group.num_tokens else None for group in layer.groups] for layer in layers]

    def rows(of: Any) -> list[list[Any]]:
        return [[None if group is None else of(group) for group in row] for row in seen]

    return {
        "layers": [layer.layer for layer in layers],
        "groups": [group.name for group in layers[0].groups],
        "tokens": layers[0].tokens_per_tag,
        "load": rows(lambda group: round(group.load_max_over_mean, 4)),
        "dead": rows(lambda group: len(group.dead_experts)),
        "mass": rows(lambda group: round(group.in_group_mass, 4) or None),
        "entropy": rows(lambda group: round(group.entropy, 4) if group.in_group_mass else None),
        "balance": [round(layer.balance_loss, 4) for layer in layers],
    }
