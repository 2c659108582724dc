"""Fifty real utterances learnt by heart and written down again from their sound: the whole path in minutes, on a CPU.

    sudo apt install asterisk-core-sounds-en asterisk-core-sounds-en-g722
    .venv/bin/python examples/real_speech/by_heart.py

What it proves is that nothing is lost on the way from sound files to a word error rate: the model is trained by
tools/train.py and answers tools/evaluate.py freely, token by token. A model that knew nothing would have 100 %. Each
step is a command of the product, echoed before it runs; run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from megatron_most.errors import DataError
from megatron_most.runtime import run_command

ROOT = Path(__file__).resolve().parents[2]
UTTERANCES = 50
TRAINING = [
    "--config", "most-tiny", "--tokens.backbone", "file", "--model.num-layers", "2", "--data.asr.weight", "1",
    "--data.window", UTTERANCES, "--train.batch-counts", "documents", "--train.global-batch-size", UTTERANCES,
    "--train.micro-batch-size", "10", "--train.sequence-length", "256", "--train.steps", "120",
    "--train.learning-rate", "8e-3", "--train.validate-every", "0", "--checkpoint.every", "0",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/by_heart"), help="folder for everything made")
    out = parser.parse_args().out
    chosen = ["--limit", UTTERANCES, "--longest", "4", "--hold-out", "0", "--tasks", "asr"]
    step("examples/real_speech/prepare.py", "--out", out, *chosen)
    tokens = ["--tokens.file", out / "tokenizer" / "token_map.json", "--data.asr.train", out / "asr" / "train"]
    step("tools/train.py", *TRAINING, *tokens, "--checkpoint.folder", out / "run")
    data = ["--manifest", out / "manifest", "--units", out / "units", "--max-new-tokens", "40"]
    model = ["--model", out / "run", "--tokenizer", out / "tokenizer"]
    step("tools/evaluate.py", "asr", *model, *data, "--out", out / "evaluation")


def step(tool: str, *words: object) -> None:
    said = [str(word) for word in words]
    print("\n$ " + shlex.join([tool, *said]), flush=True)
    if code := subprocess.run([sys.executable, str(ROOT / tool), *said]).returncode:
        raise DataError(f"{tool} ended with code {code}; what it said stands above, and the same command goes on")


if __name__ == "__main__":
    run_command(main)
