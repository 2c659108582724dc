"""Benches as the parts of one table, and the gate that keeps their ratios.

    .venv/bin/python tools/bench.py [PART ...] [--json FILE] [--gate | --keep]          # or: make bench

Each part is a program beside this file, run by itself one after another, so that what one leaves in memory is no
other's burden. A row is of paired rounds: the ratio is the median of the rounds' ratios, its spread half of what lies
between their quartiles. Only ratios are kept in ratios.json, never times: these are the machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.errors import DataError
from megatron_most.runtime import read_file, write_atomically

FOLDER = Path(__file__).resolve().parent
KEPT = FOLDER / "ratios.json"
PARTS: dict[str, tuple[str, ...]] = {
    "data": ("data.py",),
    "step": ("step.py",),
    "router": ("router.py",),
    "parts": ("parts.py",),
    "balance": ("balance.py",),
    "telemetry": ("telemetry.py",),
    "generate": ("generate.py",),
    "convert": ("convert.py", "--scale", "ci"),
}
HEAD = "| part | ours | peer | ratio | spread | wanted | verdict |\n|---|---|---|---|---|---|---|"
LEAST_SPREAD = 0.02
"""A ratio of few lucky rounds would else be kept as exact."""


_REMEDY = "write it anew with tools/bench.py --keep"


@dataclass(frozen=True)
class Kept:
    """A ratio that was reached, and by how much rounds differed."""

    ratio: float
    spread: float
    more_is_better: bool

    def loss(self, ratio: float) -> float:
        """By what the ratio is worse."""
        return self.ratio - ratio if self.more_is_better else ratio - self.ratio


def kept_of(row: Mapping[str, Any]) -> Kept | None:
    """What a row leaves for the gate: a ratio of two ways that somebody wants to be on one side of a number."""
    if row["ratio"] is None or row["wanted"][:1] not in ("≥", "≤"):
        return None
    spread = max(row["spread"] or 0.0, LEAST_SPREAD * row["ratio"])
    return Kept(round(row["ratio"], 4), round(spread, 4), row["wanted"].startswith("≥"))


def worse(rows: Sequence[Mapping[str, Any]], kept: Mapping[str, Kept]) -> list[str]:
    """A line for each row whose ratio is worse than the kept one by more than its spread."""
    lines = []
    for row in rows:
        now, before = kept_of(row), kept.get(row["part"])
        if now is not None and before is not None and before.loss(now.ratio) > before.spread:
            lines.append(f"{row['part']}: {now.ratio:.3g}, kept is {before.ratio:.3g} ± {before.spread:.2g}")
    return lines


def read_kept(path: Path) -> dict[str, Kept]:
    """By the name of the row."""
    try:
        return {part: Kept(**values) for part, values in json.loads(read_file(path, remedy=_REMEDY)).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a file of ratios ({error}); {_REMEDY}") from error


def keep(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """What was measured now takes the place of what was kept of it; the rest stays."""
    kept = read_kept(path) if path.exists() else {}
    kept |= {row["part"]: now for row in rows if (now := kept_of(row)) is not None}
    text = json.dumps({part: vars(kept[part]) for part in sorted(kept)}, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text)


def to_markdown(row: Mapping[str, Any]) -> str:
    spread = row["spread"]
    cells = (
        row["part"], row["ours"], row["peer"], "" if row["ratio"] is None else f"{row['ratio']:.3g}",
        "" if spread is None else f"± {spread:.2g}", row["wanted"], {None: "", True: "ok", False: "MISSED"}[row["ok"]],
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def run_part(name: str, more: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows as the program tells them; what it says of its progress goes where ours goes."""
    file, *words = PARTS[name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(FOLDER.parent), os.environ.get("PYTHONPATH", "")))}
    command = [sys.executable, str(FOLDER / file), *words, *more, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None, "asked for as a pipe"
        told = 0
        for line in process.stdout:
            told += 1
            yield {"bench": name, **json.loads(line)}
    # A program that has told its rows may leave 1 to say that one missed what is wanted.
    if process.returncode not in ((0, 1) if told else (0,)):
        raise DataError(f"bench/{file} ended with code {process.returncode}; its last lines are above")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="*", help=f"these only: {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every row with its seconds, a line each")
    parser.add_argument("--rounds", type=int, help="of parts that take this many rounds: step, router")
    parser.add_argument("--recipe", help="of these and balance")
    parser.add_argument("--gate", action="store_true", help="fail where a ratio is worse than the kept one")
    parser.add_argument("--keep", action="store_true", help="write what is measured into --ratios")
    parser.add_argument("--ratios", type=Path, default=KEPT, metavar="FILE")
    chosen = parser.parse_args()
    if unknown := [part for part in chosen.part if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    kept = read_kept(chosen.ratios) if chosen.gate else {}
    rows: list[dict[str, Any]] = []
    print(HEAD, flush=True)
    for name in chosen.part or PARTS:
        for row in run_part(name, _more(name, chosen)):
            rows.append(row)
            print(to_markdown(row), flush=True)
    if chosen.json:
        write_atomically(chosen.json, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if chosen.keep:
        keep(chosen.ratios, rows)
    lines = worse(rows, kept)
    for line in lines:
        print(f"worse: {line}", file=sys.stderr)
    return int(bool(lines))


def _more(name: str, chosen: argparse.Namespace) -> list[str]:
    taken = {"step": ("rounds", "recipe"), "router": ("rounds", "recipe"), "balance": ("recipe",)}.get(name, ())
    asked = {flag: getattr(chosen, flag) for flag in taken}
    return [word for flag, value in asked.items() if value is not None for word in (f"--{flag}", str(value))]
