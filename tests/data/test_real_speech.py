"""Recorded speech through the whole pipeline by the example's one command."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_most.data.dataset import open_dataset
from megatron_most.data.unit_set import open_units
from tests.doc_words import commands_by
from tests.programs import run_program

ROOT = Path(__file__).resolve().parents[2]
SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")


@pytest.mark.skipif(not SOUNDS.is_dir(), reason="apt install asterisk-core-sounds-en asterisk-core-sounds-en-g722")
def test_debians_prompts_become_verified_datasets_in_one_command(tmp_path: Path) -> None:
    [command] = commands_by(
        "data/test_real_speech.py::test_debians_prompts_become_verified_datasets_in_one_command", tmp_path
    )
    _, example, *words = command.smaller
    done = run_program(ROOT / example, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    made = tmp_path / words[words.index("--out") + 1]
    units = open_units(made / "units")
    assert units.seconds > 1400 and units.shards[0].header.utterances > 550
    train, valid = (open_dataset(made / "asr" / part)[0] for part in ("train", "valid"))
    assert train.documents + valid.documents == units.shards[0].header.utterances
    assert "Megatron-Core reads the same" in done.stderr and (made / "stats.html").stat().st_size > 10_000
