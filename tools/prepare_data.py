"""From corpora as downloaded to indexed unit datasets, step by step; every step leaves a folder, and resumes."""

from __future__ import annotations

from megatron_most.data import run_prepare_data
from megatron_most.runtime import run_command

if __name__ == "__main__":
    run_command(run_prepare_data)
