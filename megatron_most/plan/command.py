"""The command line of tools/plan.py."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from megatron_most.errors import ConfigError
from megatron_most.plan.machine import MACHINES, Assumed

LEAVE_OUT = 10
"""First steps of a start, which are slower than the others."""
_TEACH = """\
What a run will take, before it waits in a queue: no GPU is needed, nothing is built, no data is read.

  plan.py                                             most-16b in phase 1 on 6 nodes of 8 A100 with 80 GB
  plan.py --config most-16b --nodes 1 --machine h100-80
  plan.py --sequence 4096 --batch 1024 --train.batch-counts rows
  plan.py --explain 1                                 the best layout in full: memory by part, traffic, seconds
  plan.py --explain recipe --layout.tensor 2          the recipe's own layout, changed; exit code 2 if it does not fit
  plan.py --time-limit 24:00:00 --jobs 14 --quota 2   exit code 2 if that chain of jobs, or 2 TB, cannot hold the run
  plan.py --loads CHECKPOINT/expert_load.json         how even expert ranks are, and what it costs, by placement
  plan.py --measured runs/scaling/nodes-*             what these runs have reached, beside what is predicted of them

Any field of a recipe can be given as to train.py (--train.steps 1000, --deepspeed.zero_optimization.overlap_comm true).
The table has the best variant of each parallel layout: "rows" is train.micro_batch_size, "again" what is recomputed.
Memory is that of the fullest rank; it is checked against real engines. Seconds are predicted: they rest on the
assumptions below, above all on the efficiency of products. See docs/scaling.md."""


_MOST = 10**6  # of anything that is counted here: more is a slip of the unit


def run_plan(args: Sequence[str] | None = None) -> int:
    """Predict and print; the exit code."""
    chosen, words = _parser().parse_known_args(args)
    from megatron_most.plan.planning import plan_run  # late: usage lines cost no import of torch

    return plan_run(chosen, words)


def _parser() -> argparse.ArgumentParser:
    machines = ", ".join(MACHINES)
    assumptions = "\n".join(f"  {f.name:<20}{f.default!s:>8}" for f in dataclasses.fields(Assumed))
    parser = argparse.ArgumentParser(
        prog="plan.py",
        description=_TEACH,
        epilog=f"assumptions, each to be changed by --assume NAME=VALUE:\n{assumptions}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", default="stage1-asr-tts", help="a recipe's name or file (default: %(default)s)")
    parser.add_argument("--nodes", type=_positive, default=6, help="default: %(default)s")
    parser.add_argument("--gpus", type=_positive, default=8, help="of a node; default: %(default)s")
    parser.add_argument(
        "--machine", choices=tuple(MACHINES), default="a100-80", help=f"one of {machines}", metavar="NAME"
    )
    parser.add_argument("--memory", type=_above_zero, metavar="GIB", help="of a GPU, where the machine's differs")
    parser.add_argument("--peak", type=_above_zero, metavar="TFLOPS", help="in bf16, likewise")
    parser.add_argument(
        "--inside", type=_above_zero, metavar="GB/S", help="to a GPU of the same node, one way, likewise"
    )
    parser.add_argument("--between", type=_above_zero, metavar="GB/S", help="of one GPU to another node, likewise")
    parser.add_argument("--sequence", type=_positive, help="train.sequence_length")
    parser.add_argument("--batch", type=_positive, help="train.global_batch_size")
    parser.add_argument(
        "--time-limit", metavar="TIME", help="of one job, as Slurm writes it: 24:00:00, 2-00, 90 (minutes)"
    )
    parser.add_argument(
        "--jobs", type=_positive, help="that a chain may have, each going on where the last one stopped"
    )
    parser.add_argument(
        "--quota", type=_above_zero, metavar="TB", help="of the folder of runs: exit code 2 if checkpoints want more"
    )
    parser.add_argument("--top", type=_positive, default=8, help="layouts in the table; default: %(default)s")
    parser.add_argument("--explain", metavar="N|recipe", help="a layout of the table, or the recipe's own, in full")
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE", help="see below")
    parser.add_argument(
        "--loads", type=Path, metavar="FILE",
        help="expert_load.json of a checkpoint: what each placement of experts would cost under these loads",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="all of it as JSON, and nothing else")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the tables of docs/scaling.md into it, and stop"
    )
    parser.add_argument(
        "--measured", type=Path, nargs="+", metavar="RUN", help="folders of runs that differ in nodes alone"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="of --measured: a page, with FILE.svg beside it")
    parser.add_argument(
        "--leave-out", type=_positive, metavar="STEPS", help=f"of --measured: of a start; default: {LEAVE_OUT}"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text}: a whole number from 1 to {_MOST:,} is wanted")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= _MOST:
        raise argparse.ArgumentTypeError(f"{text}: a number above 0, and not above {_MOST:,}, is wanted")
    return number


def seconds_of(text: str) -> float:
    """Slurm's way to write a time: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ConfigError("--time-limit", text, "not a time", "write 24:00:00, or 2-00 for two days, or minutes")
    days, *parts = (None if part is None else int(part) for part in match.groups())
    numbers = [part for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    total = (days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    if not total:
        raise ConfigError("--time-limit", text, "no time at all", "write 24:00:00, or 2-00 for two days, or minutes")
    return float(total)
