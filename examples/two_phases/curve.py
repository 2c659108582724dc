"""The losses of both phases as numbers and as a picture: what docs/ shows is made by this, in the folder of prepare.py.

.venv/bin/python examples/two_phases/curve.py runs/two_phases --out docs/two_phases
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

COLUMNS = ("loss", "loss/text", "loss/audio")
PHASES = ("stage1", "stage2")
TASKS = ("asr", "tts", "text-lm", "speech-instruct", "text-instruct")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where both phases were trained")
    parser.add_argument("--out", type=Path, required=True, help="without a suffix: a .json and an .svg are written")
    args = parser.parse_args()
    rows, checks = [], []
    runs = [args.folder / "runs" / phase for phase in PHASES]
    for run in runs:
        for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if "validation" in line:
                checks.append((run.name, line["step"], line["validation"], line["loss"]))
            elif "gradient_norm" in line:
                rows.append([run.name, line["step"], *(line.get(name) for name in COLUMNS)])
    codec = json.loads((args.folder / "codec" / "codec.json").read_text(encoding="utf-8"))
    table: dict[str, Any] = {"codec": codec["identity"]["hash"]}
    for phase in PHASES:
        columns = zip(COLUMNS, zip(*(row[2:] for row in rows if row[0] == phase), strict=True), strict=True)
        table[phase] = {name: [None if x is None else round(x, 5) for x in values] for name, values in columns}
    args.out.with_suffix(".json").write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")
    draw(PHASES, rows, checks, args.out.with_suffix(".svg"))


def draw(runs: tuple[str, ...], rows: list[list[Any]], checks: list[tuple[Any, ...]], path: Path) -> None:
    """A panel a run: the losses of its steps by modality, and of its validations by task."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "two phases"
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for panel, run in zip(panels, runs, strict=True):
        mine = [row for row in rows if row[0] == run]
        for place, name in enumerate(COLUMNS[1:], start=3):
            known = [(row[1], row[place]) for row in mine if row[place] is not None]
            panel.plot(*zip(*known, strict=True), linewidth=0.9, alpha=0.8, label=f"{name[5:]} tokens")
        for number, task in enumerate(TASKS):
            found = [(step, loss) for name, step, what, loss in checks if name == run and what == task]
            if found:
                panel.plot(*zip(*found, strict=True), "osD^v"[number], markersize=5, label=f"{task}, held out")
        panel.set_title(run)
        panel.set_xlabel("step")
        panel.legend(fontsize=7, frameon=False)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("nats a token")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
