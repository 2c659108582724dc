"""Whole phases of training: run.py goes from a recipe to its last checkpoint, and on after any stop.

loop.py and synthetic.py are the smallest training there is, on made-up tokens, for demos and smoke tests.
"""

from megatron_most.runtime import EXIT_STOPPED
from megatron_most.train.loop import train
from megatron_most.train.run import run_training
from megatron_most.train.synthetic import synthetic_steps

__all__ = ["EXIT_STOPPED", "run_training", "synthetic_steps", "train"]
