"""MoST-C can hear: trained on twenty utterances, it transcribes them from their sound alone."""

from __future__ import annotations

import json
from pathlib import Path

import jiwer
import pytest

from megatron_most.config import load_recipe, replace
from tests.data_files import make_tokenizer
from tests.frame_files import build_frames, frame_inputs, make_speech
from tests.phases import run

STEPS, UTTERANCES = 70, 20


@pytest.mark.slow  # seventy steps; that every part of hearing is right is told by test_most_c.py, in three
def test_twenty_utterances_are_transcribed_by_heart(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    speech = make_speech(tmp_path / "corpus", recordings=4, cuts=UTTERANCES // 4, longest=4)
    build_frames(frame_inputs(speech, tmp_path / "tokenizer"), tmp_path / "asr")
    changes = {
        "tokens.backbone": "file", "tokens.file": str(tmp_path / "tokenizer" / "token_map.json"),
        "data.asr.weight": 1.0, "data.asr.train": [str(tmp_path / "asr")], "data.asr.valid": [str(tmp_path / "asr")],
        "data.audio_roots": [str(tmp_path / "corpus" / "audio")], "data.window": UTTERANCES,
        "train.steps": STEPS, "train.sequence_length": 128, "train.batch_counts": "documents",
        "train.global_batch_size": UTTERANCES, "train.micro_batch_size": 7, "train.learning_rate": 5e-3,
        "train.validate_every": STEPS, "checkpoint.folder": str(tmp_path / "run"), "checkpoint.every": 0,
        "model.num_layers": 2, "samples.count": UTTERANCES, "samples.tokens": 24,
        "samples.tokenizer": str(tmp_path / "tokenizer"), "telemetry.tensorboard": False,
    }  # fmt: skip
    run(replace(load_recipe("most-c-tiny"), changes))
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == UTTERANCES and len({line["reference"] for line in lines}) > UTTERANCES * 0.8
    said = [[spoken(line[side]) for line in lines] for side in ("reference", "answer")]
    assert jiwer.wer(*said) < 0.05, list(zip(*said, strict=True))


def spoken(text: str) -> str:
    """Without the mark of the end."""
    return text.partition("<")[0].strip() or "nothing"
