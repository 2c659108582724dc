"""What launch/*.sh ask while a job runs: attempts, preflight, verdicts; `job.py status RUN` is for people too."""

from __future__ import annotations

from megatron_most.jobs import run_job
from megatron_most.runtime import run_command

if __name__ == "__main__":
    run_command(run_job)
