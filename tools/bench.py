"""Benchmarks as ratios to other ways, and the gate that keeps them; `--help` says how."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "bench"), str(Path(__file__).resolve().parents[1])]

from harness import main  # noqa: E402

from megatron_most.runtime import run_command  # noqa: E402

if __name__ == "__main__":
    run_command(main)
