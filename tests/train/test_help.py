"""What needs no model loads none: help, and what is wrong with a command line, are told at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "megatron", "deepspeed", "transformers", "numpy"}
PROBE = f"""
import runpy, sys
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path({str(ROOT / "tools" / "train.py")!r}, run_name="__main__")
except SystemExit as end:
    print("ended", end.code, sorted({HEAVY!r} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "--train.steps"),
        (["--reference"], 0, "| `top_k` | integer |"),
        (["--config", "most-tinny"], 2, "did you mean most-tiny?"),
    ],
)
def test_what_needs_no_model_loads_none(words: list[str], code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, cwd=ROOT)
    assert said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"ended {code} []", done.stdout + done.stderr
