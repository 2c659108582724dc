"""The numbers of a run for TensorBoard and, if asked for, Weights & Biases: one event a step, rank 0 only.

Libraries are imported when a board is opened. A run that goes on hides what an earlier attempt wrote of the steps that
are taken again.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from megatron_most.config import RunConfig, TelemetryConfig
from megatron_most.errors import ConfigError
from megatron_most.train.history import Line

_FLUSH_S = 30


class Board(Protocol):
    """Where numbers are shown."""

    def show(self, step: int, at: float, values: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def require_boards(config: TelemetryConfig) -> None:
    """Raise where a board cannot be had: before a model is built, not after."""
    for name, is_wanted in (("tensorboard", config.tensorboard), ("wandb", config.wandb)):
        if is_wanted and importlib.util.find_spec(name) is None:
            remedy = f"`pip install {name}`, or set it to false"
            raise ConfigError(f"telemetry.{name}", True, f"{name} is not installed", remedy)


def open_boards(config: RunConfig, folder: Path, first: int, began: float) -> list[Board]:
    """Those asked for; the next step is `first`, and the run began at `began`."""
    boards: list[Board] = []
    if config.telemetry.tensorboard:
        boards.append(TensorBoard(folder / "tensorboard", first))
    if config.telemetry.wandb:
        boards.append(WeightsAndBiases(config, folder, re.sub(r"[^\w-]", "-", f"{config.name}-{began:.0f}")))
    return boards


class TensorBoard:
    """Event files, without torch's writer: that makes an event of every number, which costs as much as a small step."""

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder), flush_secs=_FLUSH_S)
        started = SessionLog(status=SessionLog.START)  # hides what has this step or a later one
        self._writer.add_event(Event(step=first, session_log=started))

    def show(self, step: int, at: float, values: dict[str, float]) -> None:
        named = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(step=step, wall_time=at, summary=self._summary(value=named)))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One wandb run for all attempts; it drops what it has heard of the steps that are taken again."""

    def __init__(self, config: RunConfig, folder: Path, id: str) -> None:
        import wandb

        named: dict[str, Any] = {"name": config.name, "id": id, "dir": str(folder), "config": asdict(config)}
        try:
            self._run: Any = wandb.init(**named, resume="allow")
        except Exception as error:  # not logged in, no network: of many classes
            remedy = "log in with `wandb login`, set WANDB_MODE=offline, or leave it off"
            raise ConfigError("telemetry.wandb", True, f"wandb does not start ({error})", remedy) from error

    def show(self, step: int, at: float, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def flush(self) -> None:
        """It sends by itself."""

    def close(self) -> None:
        self._run.finish()


def flat_numbers(line: Line) -> dict[str, float]:
    """The numbers of a line by name, "experts/load/text/layer 3" for what is told by layer and group."""
    flat: dict[str, float] = {}
    for name, value in line.items():
        if name in ("step", "at", "position", "experts"):
            continue
        inner = {f"{name}/{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {key: float(item) for key, item in inner.items() if isinstance(item, bool | int | float)}
    if experts := line.get("experts"):
        for kind in ("load", "dead", "mass", "entropy"):
            for layer, row in zip(experts["layers"], experts[kind], strict=True):
                for group, value in zip(experts["groups"], row, strict=True):
                    if value is not None:
                        flat[f"experts/{kind}/{group}/layer {layer}"] = float(value)
    return flat
