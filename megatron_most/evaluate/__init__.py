"""Evaluations: a checkpoint of ours or a Hugging Face folder in, numbers with their intervals out.

options.py says what can be asked, run.py opens the model (subject.py) and runs its tasks (task.py, tasks/), job.py
keeps their records and shares items out to ranks, result.py is the file that remains, table.py sets runs beside the
paper. lm-evaluation-harness is behind harness.py, programs that models write run in sandbox.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_most.runtime import lazy_names

if TYPE_CHECKING:
    from megatron_most.evaluate.commands import read_evaluate, run_evaluate
    from megatron_most.evaluate.options import Data, Options, Tools, check_options
    from megatron_most.evaluate.result import Result, read_result
    from megatron_most.evaluate.run import evaluate
    from megatron_most.evaluate.table import as_markdown, make_table, read_runs, write_table

_HOMES = {
    "commands": ("read_evaluate", "run_evaluate"),
    "options": ("Data", "Options", "Tools", "check_options"),
    "result": ("Result", "read_result"),
    "run": ("evaluate",),
    "table": ("as_markdown", "make_table", "read_runs", "write_table"),
}

__all__ = [
    "Data", "Options", "Result", "Tools", "as_markdown", "check_options", "evaluate", "make_table", "read_evaluate",
    "read_result", "read_runs", "run_evaluate", "write_table",
]  # fmt: skip

__getattr__ = lazy_names(__name__, _HOMES)
