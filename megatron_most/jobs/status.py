"""A run in a few lines: what Slurm says, how far it is, how long it will take, what went wrong last."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from megatron_most.errors import MostError
from megatron_most.jobs import book
from megatron_most.runtime import json_lines, open_file

_METRICS = "metrics.jsonl"
_RECENT = 50


def tell(run: Path, queue: str | None = None) -> str:
    """`queue`: lines "JOB|STATE|TIME LEFT|REASON" of squeue, for jobs it knows; None where it could not be asked."""
    attempts = book.read_book(run)
    if not attempts and not (run / _METRICS).exists():
        raise MostError(
            f"{run}: no run of a launcher, nor of tools/train.py, or its job has not begun; give a run's folder "
            "(checkpoint.folder)"
        )
    lines = [f"run      {run}", f"state    {_state(run, attempts, queue)}"]
    lines += _progress(run)
    if attempts:
        last = attempts[-1]
        where = f"job {last.begin.get('job', '?')} on {last.begin.get('nodes', '?')}"
        lines.append(f"attempt  {last.number}, {where}; log {last.folder / 'log'}")
    ends = [attempt for attempt in attempts if attempt.end is not None and _action(attempt) != "done"]
    if ends:
        lines.append(f"last end attempt {ends[-1].number}: {_reason(ends[-1])}")
        if words := _last_words(ends[-1]):
            lines.append(f"         {words}")
    return "\n".join(map(_plain, lines))


def _plain(line: str) -> str:
    """What comes from a run's files has no say over a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _action(attempt: book.Attempt) -> str:
    return str((attempt.end or {}).get("action", "?"))


def _state(run: Path, attempts: list[book.Attempt], queue: str | None) -> str:
    known = {line.split("|")[0]: line.split("|")[1:] for line in (queue or "").splitlines() if "|" in line}
    if (run / book.DONE).exists():
        return "DONE"
    if not attempts:
        return "not under a launcher"
    last = attempts[-1]
    if said := known.get(str(last.begin.get("job"))):
        state, left, reason = (said + ["", "", ""])[:3]
        return f"{state}, {left} left of its time" if state == "RUNNING" else f"{state} ({reason})"
    if queue is None and (last.end is None or _action(last) in ("requeue", "leave")):
        return "not known, for squeue gives no answer"
    if last.end is None:
        return "gone without a word: its node was lost, or Slurm was told to kill it"
    return "requeued, and not in the queue any more" if _action(last) in ("requeue", "leave") else "ended"


def _progress(run: Path) -> list[str]:
    steps, last, recent = 0, None, deque[float](maxlen=_RECENT)
    if (run / _METRICS).exists():
        with open_file(run / _METRICS) as file:
            for _, line in json_lines(file, run / _METRICS, _is_good):
                steps = line.get("steps", steps)
                if "seconds" in line:
                    last = line
                    recent.append(line["seconds"])
    if last is None:
        return ["step     none yet"]
    done = last["step"] + 1
    left = timedelta(seconds=round(statistics.median(recent) * max(steps - done, 0)))
    lines = [f"step     {done} of {steps}, {book.newest_step(run)} saved; {left} to go at the pace of the last steps"]
    if (share := last.get("effective")) is not None:
        lines.append(f"ETTR     {share:.1%} of the time since the run began went into steps that count")
    return lines


def _is_good(line: Mapping[str, Any]) -> bool:
    """Numbers where this page wants numbers, of a size that a clock can tell."""
    told = [line[name] for name in ("steps", "step", "seconds", "effective") if line.get(name) is not None]
    is_whole = "seconds" not in line or "step" in line
    return is_whole and all(isinstance(value, int | float) and 0 <= value < 1e12 for value in told)


def _reason(attempt: book.Attempt) -> str:
    return str((attempt.end or {}).get("reason", "?"))


def _last_words(attempt: book.Attempt) -> str:
    """The last line in its log that a command of ours ended with, where it was one that gave up."""
    if (attempt.end or {}).get("code") != 2:
        return ""
    try:
        lines = (attempt.folder / "log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line for line in lines if line.startswith(("train.py", "job.py"))]
    return said[-1] if said else ""
