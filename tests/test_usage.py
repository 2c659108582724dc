"""Usage lines come at once: to say them, no tool imports torch, or what torch is imported by."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
HEAVY = ("torch", "transformers", "megatron", "deepspeed", "safetensors", "scipy", "matplotlib")
_SAY = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ending:
    print("code", ending.code or 0)
print("heavy", *sorted({name.partition(".")[0] for name in sys.modules} & set(HEAVY)))
""".replace("HEAVY", repr(HEAVY))


@pytest.mark.parametrize("tool", TOOLS)
def test_usage_lines_import_no_torch(tool: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [sys.executable, "-c", _SAY, str(ROOT / "tools" / f"{tool}.py")],
        env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    *usage, code, heavy = said.stdout.rstrip().splitlines()
    assert (code, heavy.split()) == ("code 0", ["heavy"]), said.stderr
    assert any("usage" in line.lower() for line in usage)
