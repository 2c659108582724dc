"""The benchmark of a step compares models of one size, on the same rows, and has a row for each peer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.doc_words import commands_by
from tests.programs import run_program

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_peer_takes_steps_and_has_as_many_weights(tmp_path: Path) -> None:
    """By the command of docs/performance.md."""
    [command] = commands_by("train/test_bench_step.py::test_every_peer_takes_steps_and_has_as_many_weights", tmp_path)
    _, program, *words = command.smaller
    done = run_program(ROOT / program, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["part"] for row in rows] == [f"step, against {name}" for name in ("core", "transformers", "vanilla")]
    assert all(len(seconds) == 2 and min(seconds) > 0 for row in rows for seconds in row["seconds"].values())
    sizes = re.findall(r"(\w+): (\d+) weights, of the peer (\d+)", done.stderr)
    assert [name for name, *_ in sizes] == ["core", "transformers", "vanilla"]
    for name, ours, theirs in sizes:
        assert 0 <= int(ours) - int(theirs) <= (200 if name == "core" else 0)  # Core's MLA has no norms of latents
