"""The training loop and what it trains on."""

from megatron_most.train.loop import train
from megatron_most.train.synthetic import synthetic_steps

__all__ = ["synthetic_steps", "train"]
