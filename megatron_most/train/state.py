"""Where a run is, and what it must remember besides weights, moments and the data: kept with each checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Self

from megatron_most.config import TrainConfig
from megatron_most.data import Position
from megatron_most.errors import CheckpointError
from megatron_most.train.data_files import Stamps


@dataclass
class RunState:
    """The loop's own numbers; the engine and the reader have theirs."""

    step: int = 0
    position: Position = Position()
    skipped: int = 0
    """Steps whose gradient was not finite."""
    base: dict[str, Any] | None = None
    """The forgetting gate's first loss, and of which texts."""
    losses: list[float] = field(default_factory=list)
    """Of the last steps, spikes apart."""
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    """Spikes that were left out: the steps, and where in the data they lay."""
    high: int = 0
    """Spike losses in a row."""
    files: Stamps = field(default_factory=dict)
    """The data files as this attempt found them."""

    def to_dict(self) -> dict[str, Any]:
        """JSON for a checkpoint; the position goes with the reader's state, which proves the data."""
        return {name: value for name, value in asdict(self).items() if name != "position"}

    @classmethod
    def from_dict(cls, values: dict[str, Any], position: Position) -> Self:
        try:
            return cls(position=position, **values)
        except TypeError as error:
            raise CheckpointError(f"training state {sorted(values)}: not this version's ({error})") from error

    def note_loss(self, loss: float, train: TrainConfig) -> bool:
        """Remember a finite step's loss; True where it ends a spike that is to be left out."""
        if not train.spike_ratio:
            return False
        known = len(self.losses) * 2 >= train.spike_window  # before that, the fall of a young run looks like anything
        if known and loss > train.spike_ratio * median(self.losses):
            self.high += 1
            return self.high >= train.spike_steps
        self.high = 0
        self.losses = [*self.losses, loss][-train.spike_window :]
        return False
