"""Runs -> one page: what they were and came to, their plots, how often they were begun, and their recipes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.data.stats import percent, short, span
from megatron_most.report.beside import Beside
from megatron_most.report.read import Run
from megatron_most.report.sections import sections
from megatron_most.runtime.drawing import drawing
from megatron_most.runtime.page import write_page

_ABOVE = ": above the peak, so telemetry.peak_flops is too low"
TEMPLATE = Path(__file__).with_name("pages") / "report.html.jinja"


def write_report(runs: Sequence[Run], out: Path, beside: Beside | None = None) -> None:
    """Write the page; one that is there is replaced."""
    columns, beside = [_facts(run) for run in runs], beside or Beside()
    labels = list(dict.fromkeys(label for column in columns for label in column))
    with drawing():
        write_page(
            out,
            TEMPLATE,
            title=" · ".join(run.name for run in runs),
            tiles=_tiles(runs[0]) if len(runs) == 1 else [],
            sections=sections(runs, beside.bars),
            facts=[(label, [column.get(label, "-") for column in columns]) for label in labels],
            attempts=[(run.name, _attempts(run)) for run in runs],
            runs=runs,
            beside=beside,
        )


def _tiles(run: Run) -> list[tuple[str, str]]:
    facts = _facts(run)
    tiles = ["steps", "tokens", "loss at the end", "tokens / s", "MFU", "effective time", "attempts"]
    return [(facts[name], name) for name in tiles if name in facts]


def _facts(run: Run) -> dict[str, str]:
    """Label -> words, of what is known."""
    last, begun = run.last, run.attempts[-1].line if run.attempts else {}
    speed, mfu, losses = (_tail(run, name) for name in ("tokens_per_second", "mfu", "loss"))
    size = begun.get("parameters", {})
    # What came after an attempt's last step is told as it ends.
    saving = [one.last.get("times", {}).get("checkpoint", 0.0) for one in run.attempts if one.is_ended]
    facts = {
        "steps": f"{last['step'] + 1:,}" + (f" of {begun['steps']:,}" if "steps" in begun else ""),
        "tokens": short(int(np.nansum(run.values("tokens")))),
        "of them trained on": short(int(np.nansum(run.values("trained")))),
        "loss at the end": "-" if losses is None else f"{losses:.3f}",
        "skipped steps": f"{int(np.nansum(run.values('skipped'))):,}",
        "tokens / s": "-" if speed is None else short(int(speed)),
        "MFU": None if mfu is None else percent(mfu) + (_ABOVE if mfu > 1 else ""),
        "effective time": percent(last["effective"]) if "effective" in last else None,
        "time from first to last": _time(last["at"] - run.attempts[0].line["at"]) if run.attempts else None,
        "held up by saving": _time(float(np.nansum(run.values("times/checkpoint"))) + sum(saving)),
        "attempts": f"{len(run.attempts)}" if run.attempts else None,
        "parameters": f"{short(size['total'])}, {short(size['active'])} active" if size else None,
        "layout": f"{begun['ranks']} x {begun['device']}, {begun['layout']}" if begun else None,
        "versions": ", ".join(f"{name} {version}" for name, version in begun.get("versions", {}).items()) or None,
        "folder": str(run.folder),
    }
    for task, kept in run.validations.items():
        if "loss" in kept:
            best = int(np.nanargmin(kept["loss"].values))
            facts[f"best validation, {task}"] = (
                f"{kept['loss'].values[best]:.3f} after step {kept['loss'].steps[best]:,.0f}"
            )
    return {label: words for label, words in facts.items() if words is not None}


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else span(seconds)


def _tail(run: Run, name: str) -> float | None:
    """The median of the last twentieth, which one odd step does not move."""
    values = run.values(name)
    values = values[np.isfinite(values)]
    return float(np.median(values[-max(1, len(values) // 20) :])) if len(values) else None


def _attempts(run: Run) -> list[dict[str, Any]]:
    rows = []
    for number, attempt in enumerate(run.attempts):
        is_last = number == len(run.attempts) - 1
        rows.append(
            {
                "number": attempt.line["attempt"],
                "began": datetime.fromtimestamp(attempt.line["at"], UTC).strftime("%Y-%m-%d %H:%M:%S"),
                "ready": _time(attempt.line["ready"] - attempt.line["at"]),
                "first": f"{attempt.line['step']:,}",
                "last": f"{attempt.last['step'] + ('seconds' in attempt.last):,}",
                "time": _time(attempt.last["at"] - attempt.line["at"]),
                "end": "by itself" if attempt.is_ended else "goes on, or was killed" if is_last else "killed",
                "where": f"{attempt.line['ranks']} x {attempt.line['device']}, {attempt.line['layout']}",
            }
        )
    return rows
