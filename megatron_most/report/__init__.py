"""A run as a page: its metrics.jsonl, whole or still growing, read and drawn. Several runs lie over one another.

read.py makes arrays of the lines, plots.py draws them, page.py puts the page together; command.py is the command line.
"""

from megatron_most.report.command import run_report
from megatron_most.report.page import write_report
from megatron_most.report.read import Attempt, Run, read_run

__all__ = ["Attempt", "Run", "read_run", "run_report", "write_report"]
