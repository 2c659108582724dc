"""Real speech through the whole data pipeline: Debian's Asterisk prompts, from sound files to verified datasets.

    sudo apt install asterisk-core-sounds-en asterisk-core-sounds-en-g722    # 24 minutes of speech, CC-BY-SA-3.0
    .venv/bin/python examples/real_speech/prepare.py

Each step is a command of the product, echoed before it runs. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shlex
from pathlib import Path

from megatron_most.data import run_prepare_data
from megatron_most.errors import DataError
from megatron_most.runtime import run_command, write_atomically

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
BYTES_S = 8000  # of G.722, in a second
TRANSCRIPTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real_speech"), help="folder for everything made")
    parser.add_argument("--num-units", type=int, default=200, help="units of the codec fitted on this speech")
    parser.add_argument("--limit", type=int, help="take so many prompts; not given: all")
    parser.add_argument("--longest", type=float, metavar="S", help="leave prompts of more seconds out; not given: none")
    parser.add_argument("--hold-out", type=float, default=0.05, help="share of prompts for validation; 0: none")
    parser.add_argument("--tasks", nargs="+", default=["asr", "tts", "audio-lm"], help="datasets to build")
    args = parser.parse_args()
    if not SOUNDS.is_dir() or not TRANSCRIPTS.is_file():
        raise DataError(
            f"{SOUNDS}: the prompts are not installed; sudo apt install asterisk-core-sounds-en "
            "asterisk-core-sounds-en-g722"
        )
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "prompts.jsonl", "".join(prompts(args.longest)[: args.limit]))
    made, units = out / "manifest", str(args.num_units)
    about = ["--split", "train", "--licence", "CC-BY-SA-3.0", "--source", "Debian asterisk-core-sounds-en"]
    listed = ["--name", "asterisk", "--files", out / "prompts.jsonl", "--audio-root", SOUNDS, "--language", "en"]
    if not made.exists():
        step("manifest", "jsonl", *listed, *about, "--out", made)
    step("fit-codec", "--manifest", made, "--num-units", units, "--out", out / "codec")
    step("fit-tokenizer", "--manifest", made, "--num-units", units, "--out", out / "tokenizer")
    step("units", "--manifest", made, "--codec", out / "codec", "--out", out / "units")
    common = ["--manifest", made, "--units", out / "units", "--tokenizer", out / "tokenizer"]
    common += ["--tokens", out / "tokenizer" / "token_map.json", "--hold-out", args.hold_out, "--hold-out-by", "row"]
    parts = {"train": "train", "valid": "valid"} if args.hold_out else {"train": "all"}
    for task in args.tasks:
        for name, part in parts.items():
            step("build", "--task", task, *common, "--part", part, "--out", out / task / name)
    datasets = [out / task / name for task in args.tasks for name in parts]
    step("verify", "--paths", made, out / "units", *datasets)
    step("stats", "--dataset", *datasets, "--manifest", made, "--units", out / "units", "--out", out / "stats.html")


def prompts(longest_s: float | None) -> list[str]:
    """One JSON line a prompt that is speech: its file and its words. Beeps and silence stand in brackets."""
    lines = []
    for line in gzip.decompress(TRANSCRIPTS.read_bytes()).decode().splitlines():
        name, colon, text = line.partition(":")
        sound = SOUNDS / f"{name}.g722"
        is_speech = colon and not name.startswith(";") and not text.strip().startswith("[")
        if is_speech and sound.is_file() and (longest_s is None or sound.stat().st_size <= longest_s * BYTES_S):
            row = {"id": name, "audio": f"{name}.g722", "text": text.strip(), "speaker": "allison"}
            lines.append(json.dumps(row) + "\n")
    return lines


def step(*words: object) -> None:
    """One command, in this process: a process of its own would import for longer than most of them work."""
    said = [str(word) for word in words]
    print("\n$ " + shlex.join(["tools/prepare_data.py", *said]), flush=True)
    run_prepare_data(said)


if __name__ == "__main__":
    run_command(main)
