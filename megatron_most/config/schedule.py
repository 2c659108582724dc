"""The learning rate of each step."""

from __future__ import annotations

import math

from megatron_most.config.schema import TrainConfig


def learning_rate(train: TrainConfig, step: int) -> float:
    """Of a step counted from 0: up through the warm-up, then down by the named schedule to end_ratio at `steps`."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.learning_rate
    first = train.steps - train.decay_steps if train.schedule == "wsd" else train.warmup_steps
    done = max(0.0, (step - first) / max(1, train.steps - first))
    left = (1 + math.cos(math.pi * done)) / 2 if train.schedule == "cosine" else 1 - done
    return train.learning_rate * (train.end_ratio + (1 - train.end_ratio) * left)


def share_of_peak(train: TrainConfig, rate: float) -> float:
    """What part of its highest a learning rate is; 0 where nothing shall be learnt."""
    return rate / train.learning_rate if train.learning_rate else 0.0
