"""The command line of tools/report.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_most.report.page import write_report
from megatron_most.report.read import read_run
from megatron_most.runtime import get_logger
from megatron_most.runtime.page import require_page

_log = get_logger(__name__)
PAGE = "report.html"


def run_report(args: Sequence[str] | None = None) -> None:
    """Read the runs named and write the page."""
    parser = argparse.ArgumentParser(
        prog="report.py", description="A run's metrics as one HTML page that loads nothing; several runs overlaid."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder (checkpoint.folder)")
    parser.add_argument("--out", type=Path, help=f"the page; not given = {PAGE} in the first run's folder")
    chosen = parser.parse_args(args)
    out = chosen.out or chosen.runs[0] / PAGE
    require_page(out)
    runs = [read_run(folder, name) for folder, name in zip(chosen.runs, _names(chosen.runs), strict=True)]
    write_report(runs, out)
    _log.info("%s: %s", out, ", ".join(f"{run.name} up to step {run.last['step'] + 1}" for run in runs))


def _names(folders: Sequence[Path]) -> list[str]:
    """The end of each path that tells it from the others; a run that is given twice has one name twice."""
    parts = [folder.resolve().parts for folder in folders]
    for size in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-size:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names
