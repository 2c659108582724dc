"""The command line of tools/report.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_most.report.beside import Beside, read_bars, read_figures, read_routing, read_sound
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
    parser.add_argument("--evaluation", nargs="+", type=Path, default=[], help="folders of tools/evaluate.py: a table")
    parser.add_argument("--sound", nargs="+", default=[], metavar="LABEL=FILE", help="small WAV files to be heard")
    parser.add_argument("--routing", type=Path, metavar="FILE", help="what generate.py --routing wrote: a table")
    parser.add_argument("--ablation", type=Path, metavar="FILE", help="results.json of bench/ablation.py: bars")
    chosen = parser.parse_args(args)
    out = chosen.out or chosen.runs[0] / PAGE
    require_page(out)
    runs = [read_run(folder, name) for folder, name in zip(chosen.runs, _names(chosen.runs), strict=True)]
    beside = Beside(
        figures=read_figures(chosen.evaluation),
        bars=read_bars(chosen.ablation) if chosen.ablation else [],
        sounds=[read_sound(words) for words in chosen.sound],
        routing=read_routing(chosen.routing) if chosen.routing else None,
    )
    write_report(runs, out, beside)
    _log.info("%s: %s", out, ", ".join(f"{run.name} up to step {run.last['step'] + 1}" for run in runs))


def _names(folders: Sequence[Path]) -> list[str]:
    """The end of each path that tells it from the others; a run that is given twice has one name twice."""
    parts = [folder.resolve().parts for folder in folders]
    for size in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-size:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names
