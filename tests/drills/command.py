"""The command line of the fault drills, `tools/drills.py`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all is as it must be. 1: something is not. 2: no such drill."""
    options = _parse(arguments)
    # Late, as a usage line must not cost the import of torch and Megatron-Core.
    from tests.drills.bench import Bench
    from tests.drills.table import COLUMNS, DRILLS, run_control, run_drill
    from tests.harness import warm

    if options.list:
        for drill in DRILLS.values():
            print(f"{drill.name:<18}  {drill.about}; protection: {drill.protection}")
        return 0
    named = options.without_protection or options.only or list(DRILLS)
    if unknown := [name for name in named if name not in DRILLS]:
        print(f"drills.py: no drill {unknown[0]}; there are: {', '.join(DRILLS)}", file=sys.stderr)
        return 2
    are_controls = bool(options.controls or options.without_protection)
    good, bad = ("failed as it must", "DID NOT FAIL AS IT MUST") if are_controls else ("ok", "FAILED")
    folder = Path(options.folder or tempfile.mkdtemp(prefix="drills-"))
    folder.mkdir(parents=True, exist_ok=True)
    warm()
    bench, rows = Bench(Path(tempfile.mkdtemp(dir=folder))), []
    for number, drill in enumerate((DRILLS[name] for name in named), 1):
        print(f"{number}/{len(named)} {drill.name}: {drill.about} ... ", end="", file=sys.stderr, flush=True)
        rows.append((run_control if are_controls else run_drill)(drill, bench))
        print(f"{good if rows[-1].is_good else bad}, {rows[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    print(f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|", *rows, sep="\n")
    wrong = [row.name for row in rows if not row.is_good]
    if wrong:
        print(f"{len(wrong)} of {len(rows)} not as they must be: {', '.join(wrong)}", file=sys.stderr)
    if wrong or options.folder:
        print(f"the runs, with what each rank said, are in {bench.folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return int(bool(wrong))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="drills.py",
        description="Harm small training runs, in real processes and files, and see that nothing of them is lost. Each "
        "drill kills, stops, fills, flips or changes something, proves that it did, and compares what came of the run "
        "with one that was left alone, step by step: documents and losses. Takes two cores and two minutes.",
        epilog="A drill whose protection is switched off must fail, or it would prove nothing: --controls tries that "
        "with each. Columns: again = optimizer steps that were taken twice; s = seconds. Exit code 1 where anything is "
        "not as it must be; the runs are then kept to be looked at.",
    )
    parser.add_argument("--list", action="store_true", help="name the drills and the protection each is about")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these drills")
    parser.add_argument("--controls", action="store_true", help="switch each drill's protection off; all must fail")
    parser.add_argument("--without-protection", nargs="+", default=[], metavar="NAME", help="the controls of these")
    parser.add_argument("--folder", metavar="DIR", help="keep the runs there; else they go to a temporary folder")
    return parser.parse_args(arguments)
