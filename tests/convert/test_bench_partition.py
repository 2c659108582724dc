"""The benchmark of partitions trains, converts and compares at its smallest scale, and writes numbers and a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.doc_words import commands_by

ROOT = Path(__file__).resolve().parents[2]
GATES = {"masked_softmax", "masked_softmax, constant 1", "reference"}


@pytest.mark.slow
def test_it_tells_the_losses_of_every_strategy_under_every_gate(tmp_path: Path) -> None:
    [command] = commands_by(
        "convert/test_bench_partition.py::test_it_tells_the_losses_of_every_strategy_under_every_gate", tmp_path
    )
    _, program, *words = command.smaller
    out = tmp_path / words[words.index("--out") + 1]
    out.parent.mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / program), *words], cwd=tmp_path, capture_output=True, text=True, timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.with_suffix(".json").read_text())
    base, *others = rows
    assert base["strategy"] == "none" and base["mass"] == 1 and 3 < base["text"] < 6
    for strategy, count in {"random": 2, "index": 1, "alternate": 1, "load": 1, "affinity": 1}.items():
        mine = [row for row in others if row["strategy"] == strategy]
        assert len(mine) == 3 * count and {row["gate"] for row in mine} == GATES
        assert len({row["text"] for row in mine}) == 3 * count  # gate and constant are not the same thing three times
        assert all(0.2 < row["mass"] < 0.9 and row["text"] != base["text"] for row in mine)
    table = [line.split("|")[2].strip() for line in done.stdout.splitlines()[2:]]
    assert table == ["none", *(name for name in ("random", "index", "alternate", "load", "affinity") for _ in range(3))]
    assert ElementTree.parse(out.with_suffix(".svg")).getroot().tag.endswith("svg")
