"""What follows an attempt: done, again, or an end with its reason. Plain values in, one decision out.

Ranks leave the code they ended with in a file each, for srun's own code is that of whichever task it heard of first or
worst. The rank that failed says 2 where the others say 1; see docs/faults.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megatron_most.runtime import EXIT_STOPPED

MOST_FRUITLESS = 2
"""Attempts of a job, one after the other, that may save nothing before it ends."""

Action = Literal["done", "requeue", "stop"]


@dataclass(frozen=True)
class Decision:
    action: Action
    code: int
    """Of the batch script, where it ends."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended."""

    codes: Mapping[int, int]
    """rank -> exit code, of those that had one to tell; negative or above 128 for a signal."""
    srun: int
    asked: bool = False
    """The batch script was signalled before the time limit."""
    cancelled: bool = False
    """It got SIGTERM: scancel, the time limit itself, or Slurm requeues by itself."""
    lost: bool = False
    """srun had to be ended: its step was gone and it did not notice."""
    stop_file: bool = False
    """A person's file `stop` is there."""


def decide(outcome: Outcome, step_before: int, step: int, fruitless: int) -> Decision:
    """`fruitless`: attempts of this job in a row that have saved nothing, this one included."""
    wrong = sorted(rank for rank, code in outcome.codes.items() if code == 2)
    if wrong:
        return Decision("stop", 2, f"rank {wrong[0]} ended with an error that wants mending; its line is in the log")
    first = outcome.codes.get(0)
    if outcome.srun == 0 and first == 0:
        return Decision("done", 0, f"all steps are taken and saved, {step} of them")
    if outcome.cancelled:
        return Decision("stop", EXIT_STOPPED, f"Slurm ended the job (scancel, or its time limit); step {step} is saved")
    if first == EXIT_STOPPED and outcome.stop_file:
        remedy = "remove the file `stop` and submit again to go on"
        return Decision("stop", EXIT_STOPPED, f"stopped on request, step {step} is saved; {remedy}")
    why = _why(outcome)
    if fruitless >= MOST_FRUITLESS:
        words = f"{fruitless} attempts in a row have saved nothing beyond step {step_before}, so no other begins"
        return Decision("stop", 1, f"{why}; {words}")
    return Decision("requeue", EXIT_STOPPED, f"{why}; step {step} is saved")


def _why(outcome: Outcome) -> str:
    if outcome.asked:
        return "the time limit is near"
    if outcome.lost:
        return "the step was gone and srun did not return: a link between two nodes is cut"
    if outcome.codes.get(0) == EXIT_STOPPED:
        # Slurm sends a signal again that a node has not confirmed, and a requeued job has steps of the same numbers.
        return "the ranks alone were told to stop, by a signal to their step"
    killed = {rank: code for rank, code in outcome.codes.items() if code > 128 or code < 0}
    if killed:
        rank, code = min(killed.items())
        return f"rank {rank} was killed by signal {code - 128 if code > 128 else -code}"
    return f"ranks have failed (srun's code {outcome.srun})"
