"""Our numbers beside the paper's and its peers', as Markdown and as a page; what else the runs found comes after."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_most.errors import DataError
from megatron_most.evaluate.published import PEERS, ROWS
from megatron_most.evaluate.result import Result, find_results, read_result
from megatron_most.runtime import page, write_atomically, writing
from megatron_most.runtime.log import printable
from megatron_most.score import Score, find_normaliser

TEMPLATE = Path(__file__).with_name("pages") / "table.html.jinja"
NOTHING, PARTIAL = "–", "*"
_IN_PERCENT = {"wer", "cer", "accuracy", "acc", "exist_match", "exact_match", "pass@1"}
_LESS_IS_BETTER = {"wer", "cer", "nll", "perplexity"}
_JUDGES = ("whisper", "faster-whisper")
"""Who heard the published numbers."""


@dataclass(frozen=True)
class Cell:
    """One number in words."""

    value: str
    interval: str = ""
    is_best: bool = False
    """Of the runs in its line."""


@dataclass(frozen=True)
class Line:
    label: str
    cells: tuple[Cell, ...]
    """Of the runs, then of the peers."""


@dataclass(frozen=True)
class Section:
    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """All that is shown."""

    runs: tuple[str, ...]
    peers: tuple[str, ...]
    sections: tuple[Section, ...]
    facts: tuple[tuple[str, str, str, str], ...]
    """Of each result: run, task, items, what stands against comparing it."""
    models: tuple[tuple[str, str, str], ...]
    """Of each run: name, folder, hash."""


def read_runs(folders: Sequence[Path]) -> dict[str, list[Result]]:
    """Name -> its results. DataError where a run holds results of several models, or one task twice."""
    found: dict[str, list[Result]] = {}
    for folder in folders:
        results = [read_result(path) for path in find_results([folder])]
        hashes = {result.model["hash"] for result in results}
        if len(hashes) > 1:
            raise DataError(f"{folder}: results of {len(hashes)} models; give each model a run's folder of its own")
        tasks = [result.task for result in results]
        if twice := sorted({task for task in tasks if tasks.count(task) > 1}):
            raise DataError(f"{folder}: {twice[0]} twice; give the run's folder, not one with several runs")
        name = folder.resolve().name
        found[name if name not in found else f"{name} ({len(found) + 1})"] = results
    return found


def make_table(runs: dict[str, list[Result]]) -> Table:
    of_run = [{_named(result): result for result in results} for results in runs.values()]
    sections: dict[str, list[Line]] = {}
    shown: set[tuple[str, str]] = set()
    for row in ROWS:
        found = []
        for results in of_run:
            task = next(
                (task for task in sorted(results) if row.fits(task) and row.score in results[task].scores), None
            )
            found.append(None if task is None else (results[task].scores[row.score], not _against(results[task])))
            shown.add((task or "", row.score))
        if any(found) or any(row.known.values()):
            sections.setdefault(row.section, []).append(_line(row.label, row.score, found, row.known))
    for line in _rest(of_run, shown):
        sections.setdefault("Other results", []).append(line)
    facts = tuple(
        (name, result.task, f"{result.items:,}", _against(result))
        for name, results in runs.items()
        for result in results
    )
    models = tuple((name, str(of[0].model["folder"]), str(of[0].model["hash"])[:12]) for name, of in runs.items() if of)
    made = tuple(Section(title, tuple(lines)) for title, lines in sections.items())
    return Table(tuple(runs), PEERS, made, facts, models)


def as_markdown(table: Table) -> str:
    """Percent where it is a rate; the bootstrap interval in brackets, the best run in bold."""
    names = [*table.runs, *table.peers]
    lines = []
    for section in table.sections:
        lines += [f"### {section.title}", "", _row(["", *names]), _row(["---", *["---:"] * len(names)])]
        lines += [_row([line.label, *map(_in_markdown, line.cells)]) for line in section.lines] + [""]
    lines += [_row(["run", "model", "hash"]), _row(["---"] * 3), *(_row(list(model)) for model in table.models), ""]
    if any(left for *_, left in table.facts):
        lines += [f"{PARTIAL} not to be compared as it stands:", ""]
        lines += [f"- {run}, {task}: {items} items, {left}" for run, task, items, left in table.facts if left] + [""]
    return "\n".join(lines)


def write_table(table: Table, out: Path) -> None:
    """Markdown (.md) or a page (.html)."""
    if out.suffix.lower() in (".html", ".htm"):
        page.require_page(out, "or write .md")
        page.write_page(out, TEMPLATE, table=table, partial=PARTIAL)
    elif out.suffix.lower() == ".md":
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, as_markdown(table))
    else:
        raise DataError(f"{out}: not a name for a table; give --out a file name that ends in .md or .html")


def _named(result: Result) -> str:
    """A corpus in another language than English is named by it too, so that no line of published numbers takes it."""
    language = result.data.get("language")
    is_english = not language or find_normaliser(str(language)).name == "whisper-english"
    return result.task if is_english else f"{result.task} ({language})"


def _rest(of_run: Sequence[dict[str, Result]], shown: set[tuple[str, str]]) -> list[Line]:
    """Scores that no row has asked for."""
    names = {(task, score) for results in of_run for task in results for score in results[task].scores} - shown
    lines = []
    for task, score in sorted(names):
        found = [
            (results[task].scores[score], not _against(results[task]))
            if task in results and score in results[task].scores
            else None
            for results in of_run
        ]
        lines.append(_line(f"{task}: {score}", score, found, {}))
    return lines


def _line(label: str, score: str, found: Sequence[tuple[Score, bool] | None], known: dict[str, float]) -> Line:
    values = [one[0].value for one in found if one is not None]
    base = score.split(" ")[0]
    best = (min if base in _LESS_IS_BETTER else max)(values) if len(values) > 1 else None
    scale = 100.0 if base in _IN_PERCENT else 1.0
    ours = [_cell(one, scale, best) for one in found]
    return Line(label, (*ours, *(Cell(str(known[peer])) if peer in known else Cell(NOTHING) for peer in PEERS)))


def _cell(found: tuple[Score, bool] | None, scale: float, best: float | None) -> Cell:
    if found is None:
        return Cell(NOTHING)
    score, is_whole = found
    digits = 2 if scale == 100.0 else 4
    value, low, high = (f"{scale * number:.{digits}f}" for number in (score.value, score.low, score.high))
    return Cell(value + PARTIAL * (not is_whole), f"{low} to {high}", score.value == best)


def _against(result: Result) -> str:
    """Why it is no number to set beside others: items that are not in it, or a judge that nobody else has."""
    said = [f"{count} {reason}" for reason, count in sorted(result.left_out.items())]
    if (limit := result.data.get("limit")) is not None:
        said.append(f"the first {limit} alone (--limit)")
    judge = result.config.get("judge")
    if isinstance(judge, dict) and judge.get("name") not in _JUDGES:
        said.append(f"heard by {judge.get('name')} ({judge.get('model')})")
    return ", ".join(said)


def _in_markdown(cell: Cell) -> str:
    value = f"**{cell.value}**" if cell.is_best else cell.value
    return f"{value} ({cell.interval})" if cell.interval else value


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(html.escape(printable(cell), quote=False).replace("|", "\\|") for cell in cells) + " |"
