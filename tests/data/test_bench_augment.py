"""The benchmark of augmentation runs, judges the default set alone, and tells every effect that needs no files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from megatron_most.config.augment import EFFECTS

ROOT = Path(__file__).resolve().parents[2]


def test_the_default_set_is_judged_and_every_effect_is_told() -> None:
    words = [sys.executable, str(ROOT / "bench" / "augment.py"), "--minutes", "0.3"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert head == ["part", "ours", "peer", "ratio", "wanted", "verdict"], done.stderr[-2000:]
    assert [row[0].split(",")[0] for row in rows] == ["the default set", *(n for n in EFFECTS if n != "voices")]
    verdict, ratio = rows[0][5], float(rows[0][3])
    assert rows[0][4] == "≥ 200" and verdict == ("ok" if ratio >= 200 else "MISSED")
    assert done.returncode == int(verdict == "MISSED")
    assert all(not row[5] and float(row[3]) > 1 for row in rows[1:])
