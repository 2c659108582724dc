"""Render runs as one HTML page with plots: `report.py RUN [RUN ...] [--out FILE]`.

    .venv/bin/python tools/report.py runs/phase1 --out phase1.html

RUN is a run's folder, of a run that has ended, was killed, or goes on. The page loads nothing from anywhere.
"""

from __future__ import annotations

from megatron_most.report import run_report
from megatron_most.runtime import run_command

if __name__ == "__main__":
    run_command(run_report)
