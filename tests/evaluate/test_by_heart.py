"""Fifty recordings of people, from sound files to a word error rate by the product's own commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_most.evaluate import read_result

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")


@pytest.mark.slow
@pytest.mark.skipif(not PROMPTS.is_dir(), reason="apt install asterisk-core-sounds-en-g722")
def test_fifty_real_utterances_learnt_by_heart_are_written_down_freely(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "real_speech" / "by_heart.py"), "--out", str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=1500)
    [path] = (tmp_path / "out" / "evaluation").glob("asr*/result.json")
    result = read_result(path)
    assert result.items == 50 and not result.left_out
    assert result.scores["wer"].value < 0.05
