"""A run as a job of Slurm: attempts and what follows them, a look at the nodes before they train, a run at a glance.

The scripts of launch/ start and signal processes; what has to be thought about is here and needs no Slurm to be tried.
"""

from megatron_most.jobs.commands import run_job

__all__ = ["run_job"]
