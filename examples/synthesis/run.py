"""Phase 2 from nothing but seeds, offline: dialogues are written, spoken, judged, made into datasets, and learnt.

    sudo apt install flite
    .venv/bin/python examples/synthesis/run.py --out runs/synthesis          # 500 dialogues, 50 steps
    .venv/bin/python examples/synthesis/run.py --out runs/small --scale ci   # 16 dialogues, 4 steps

Each step is a command of the product, echoed before it runs. Killed at any moment and started again it goes on, and
what it leaves is the same to the byte, but for clocks. At the end summary.json has the numbers of the whole way.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.errors import DataError
from megatron_most.runtime import run_command, write_atomically

ROOT = Path(__file__).resolve().parents[2]
VOICES = ("rms", "slt", "awb", "kal16")
FLITE = "flite -voice {voice} -f {text} -o {wave}"
ABOUT = ["--split", "train", "--licence", "CC0-1.0", "--source", "examples/synthesis"]
UNITS = 64
SUMMARY, SCALE = "summary.json", "scale"


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    dialogues: int
    exchanges: int
    steps: int
    places: int
    """Of a row; longer documents are left out of training, and told."""
    rows: int
    """Of a step."""
    hold_out: float
    """Share of rows to validate with; 0: none."""


SCALES = {"full": Scale(500, 4, 50, 2048, 4, 0.1), "ci": Scale(16, 2, 4, 1024, 2, 0.0)}
TASKS = {"speech-instruct": "spoken", "text-instruct": "written", "asr": "speech", "tts": "speech"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/synthesis"), help="folder for everything made")
    parser.add_argument("--scale", choices=SCALES, default="full", help="ci: small, for tests")
    args = parser.parse_args()
    if shutil.which("flite") is None:
        raise DataError("flite is not installed, and nothing else here speaks; sudo apt install flite")
    out, scale = args.out, SCALES[args.scale]
    out.mkdir(parents=True, exist_ok=True)
    if (out / SCALE).exists() and (made := (out / SCALE).read_text().strip()) != args.scale:
        raise DataError(f"{out}: made at --scale {made}, not {args.scale}; choose another --out or remove it")
    write_atomically(out / SCALE, f"{args.scale}\n")
    speak(out, scale)
    prepare(out, scale)
    train(out, scale)
    found = summary(out)
    write_atomically(out / SUMMARY, json.dumps(found, indent=1) + "\n")
    print(f"\n{out / SUMMARY}:")
    for name, value in found.items():
        print(f"  {name}: {value}")


def speak(out: Path, scale: Scale) -> None:
    """Seeds to dialogues, dialogues to speech that a judge has understood."""
    seeds = Path(__file__).with_name("seeds.toml")
    make(out / "dialogues", "synthesize", "dialogues", "--seeds", seeds, "--dialogues", scale.dialogues,
         "--shape.max-exchanges", scale.exchanges, "--shard", "0/1")  # fmt: skip
    # A quarter stays written: phase 2 wants instructions of both kinds.
    make(out / "speech", "synthesize", "speak", "--dialogues", out / "dialogues", "--name", "spoken",
         "--voices", *VOICES, "--voice.command", FLITE, "--weights.text-to-text", "0.3", "--shard", "0/1")  # fmt: skip


def prepare(out: Path, scale: Scale) -> None:
    """Manifests, codec, tokenizer, units, datasets."""
    made, speech = out / "manifests", out / "speech"
    listed = {
        "speech": ["jsonl", "--name", "spoken", "--files", speech / "utterances.jsonl", "--audio-root",
                   speech / "audio", "--language", "en"],
        "spoken": ["chat", "--name", "talk", "--files", speech / "spoken.jsonl"],
        "written": ["chat", "--name", "chat", "--files", speech / "written.jsonl"],
    }  # fmt: skip
    for name, words in listed.items():
        make(made / name, "prepare_data", "manifest", *words, *ABOUT)
    manifests = [made / name for name in listed]
    codec, tokenizer, units = out / "codec", out / "tokenizer", out / "units"
    make(codec, "prepare_data", "fit-codec", "--manifest", made / "speech", "--num-units", UNITS)
    make(tokenizer, "prepare_data", "fit-tokenizer", "--manifest", *manifests, "--num-units", UNITS)
    make(units, "prepare_data", "units", "--manifest", made / "speech", "--codec", codec)
    common = ["--tokenizer", tokenizer, "--tokens", tokenizer / "token_map.json"]
    for task, name in TASKS.items():
        words = [*common, "--manifest", made / name, *(["--units", units] if name != "written" else [])]
        for part, rows in parts(scale).items():
            make(out / "sets" / task / part, "prepare_data", "build", "--task", task, *words, *rows)
    sets = [out / "sets" / task / part for task in TASKS for part in parts(scale)]
    step("prepare_data", "verify", "--paths", *manifests, units, *sets)


def parts(scale: Scale) -> dict[str, list[str]]:
    """Of each dataset, with the options of `build` that choose the rows."""
    share = ["--hold-out", str(scale.hold_out), "--hold-out-by", "row"]
    return {part: [*share, "--part", part] for part in ("train", "valid")} if scale.hold_out else {"train": []}


def train(out: Path, scale: Scale) -> None:
    """Phase 2 in miniature, from random weights, with these datasets in the mix that the phase's recipe says."""
    folder = out.resolve()
    data = "".join(
        f"\n[data.{task.replace('-', '_')}]\n"
        + "".join(f'{part} = ["{folder}/sets/{task}/{part}"]\n' for part in parts(scale))
        for task in TASKS
    )
    write_atomically(
        out / "phase2.toml",
        'extends = "stage2-tiny"\nname = "phase2"\n'
        f'\n[tokens]\nbackbone = "file"\nfile = "{folder}/tokenizer/token_map.json"\n{data}'
        f"\n[train]\nsteps = {scale.steps}\nsequence_length = {scale.places}\nglobal_batch_size = {scale.rows}\n"
        f'batch_counts = "rows"\nlearning_rate = 5e-3\nvalidate_every = {scale.steps}\n'
        f'\n[checkpoint]\nfolder = "{folder}/run"\nevery = {max(scale.steps // 5, 1)}\n',
    )
    step("train", "--config", out / "phase2.toml")


def summary(out: Path) -> dict[str, Any]:
    """What became of the seeds. Nothing in it is of a clock, so that it is the same after any number of kills."""
    written = json.loads((out / "dialogues" / "synthesis.json").read_text())
    spoken = json.loads((out / "speech" / "speech.json").read_text())
    rates = [row["wer"] for row in read_lines(out / "speech" / "utterances.jsonl")]
    steps = {row["step"]: row for row in read_lines(out / "run" / "metrics.jsonl") if "gradient_norm" in row}
    tasks = {name for row in steps.values() for name in row if name.startswith("task/")}

    def ends(name: str) -> list[float]:
        rows = [steps[number] for number in sorted(steps) if name in steps[number]]
        return [round(rows[0][name], 4), round(rows[-1][name], 4)]

    return {
        "dialogues written": written["dialogues"],
        "briefs rejected": written["rejects"],
        "dialogues with speech": spoken["spoken"],
        "dialogues without": spoken["written"],
        "dialogues set aside": spoken["rejects"],
        "utterances": spoken["utterances"],
        "hours of speech": round(spoken["seconds"] / 3600, 4),
        "word error rate of those kept": round(sum(rates) / len(rates), 4),
        "steps": len(steps),
        "loss": ends("loss"),
        **{name: ends(name) for name in sorted(tasks)},
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make(out: Path, tool: str, *words: object) -> None:
    """A step that writes a folder, which has its name once it is whole."""
    if not out.exists():
        step(tool, *words, "--out", out)


def step(tool: str, *words: object) -> None:
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *(str(word) for word in words)]
    print("\n$ " + shlex.join([f"tools/{tool}.py", *command[2:]]), flush=True)
    began = time.monotonic()
    if code := subprocess.run(command).returncode:
        raise DataError(f"{tool}.py {words[0]} ended with code {code}; see above")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    run_command(main)
