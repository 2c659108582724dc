"""The command line of tools/evaluate.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from megatron_most.evaluate.options import TASKS, Options
from megatron_most.evaluate.result import Result
from megatron_most.runtime import get_logger, get_rank

say = get_logger(__name__).info


@dataclass(frozen=True, kw_only=True)
class Table:
    """Our numbers beside the paper's and its peers': `evaluate.py table RUN... --out table.md --out table.html`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, a column each."""
    out: tuple[Path, ...] = ()
    """Files to write: .md, .html. Not given = Markdown on the terminal."""

    def run(self) -> None:
        from megatron_most.errors import DataError
        from megatron_most.evaluate.table import as_markdown, make_table, read_runs, write_table

        if not self.runs:
            raise DataError("table: no runs; give the folders that evaluations wrote (their --out)")
        table = make_table(read_runs(self.runs))
        for path in self.out:
            write_table(table, path)
            say("%s: %d runs", path, len(table.runs))
        if not self.out:
            print(as_markdown(table), end="")


def read_evaluate(args: Sequence[str] | None = None) -> Options | Table:
    """What a command line of tools/evaluate.py asks for, not yet run."""
    given = list(sys.argv[1:] if args is None else args)
    if given[:1] == ["table"]:
        return tyro.cli(Table, args=given[1:], prog="evaluate.py table")
    tasks = "\n".join(f"  {name}: {words}" for name, words in TASKS.items())
    return tyro.cli(Options, args=given, prog="evaluate.py", description=f"{Options.__doc__}\n\nTasks:\n{tasks}")


def run_evaluate(args: Sequence[str] | None = None) -> None:
    """`table RUN...`, or `TASK... --model FOLDER --out RUN`."""
    options = read_evaluate(args)
    if isinstance(options, Table):
        options.run()
        return
    from megatron_most.evaluate.run import evaluate  # late: usage lines cost no import of torch

    results = evaluate(options)
    if get_rank() == 0:
        print(as_text(results), end="")


def as_text(results: Sequence[Result]) -> str:
    """A line a score."""
    lines = []
    for result in results:
        for name, score in result.scores.items():
            left = f", {sum(result.left_out.values())} left out" if result.left_out else ""
            interval = f"{score.low:.4f} to {score.high:.4f}"
            lines.append(f"{result.task}  {name} {score.value:.4f} ({interval})  {score.items} items{left}")
    return "\n".join(lines) + "\n"
