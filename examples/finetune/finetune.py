"""Your own recordings: a folder of sound files, each with its words in a .txt beside it, and a model that learns them.

    .venv/bin/python examples/finetune/finetune.py --audio my_recordings --model runs/quickstart/runs/phase2 \\
        --codec runs/quickstart/codec --tokenizer runs/quickstart/tokenizer \\
        --templates examples/quickstart/templates.toml --out runs/finetune

The model is a run or a checkpoint of ours (an import too); codec, tokenizer and templates (the words around a
recording) are those it was made with, which its checkpoint knows by their hashes. A tenth of the recordings is held
out: on it the model is asked before and after.
Each step is a command of the product, echoed before it runs. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from megatron_most.checkpoint import RECIPE, find_checkpoint
from megatron_most.config import TaskConfig, dump, from_command_line, load_recipe, replace
from megatron_most.convert import run_convert_ckpt
from megatron_most.data import run_prepare_data
from megatron_most.errors import DataError
from megatron_most.evaluate import run_evaluate
from megatron_most.runtime import run_command, write_atomically
from megatron_most.train import run_training

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
HELD_OUT = 10  # every tenth
RUN: dict[str, Callable[[list[str]], Any]] = {
    "prepare_data.py": run_prepare_data, "evaluate.py": run_evaluate, "convert_ckpt.py": run_convert_ckpt,
    "train.py": lambda words: run_training(from_command_line(words)),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, help="folder of sound files and their .txt")
    for name in ("model", "codec", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--templates", default="chat", help="that the model has learnt: a name that ships, or a file")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"), help="folder for everything made")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--licence", default="unknown", help="of the recordings; it goes into the model's card")
    args = parser.parse_args()
    out, checkpoint = args.out, find_checkpoint(args.model, "--model")[0]
    out.mkdir(parents=True, exist_ok=True)
    lists = {part: "".join(json.dumps(row) + "\n" for row in rows) for part, rows in listed(args.audio).items()}
    for part, lines in lists.items():
        kept = out / f"{part}.jsonl"
        if (out / "manifests" / part).exists() and kept.read_text(encoding="utf-8") != lines:
            raise DataError(f"{args.audio}: not the recordings and words that {out} was begun with; give another --out")
    for part, lines in lists.items():
        write_atomically(out / f"{part}.jsonl", lines)
        prepare(out, part, args)
    asked = ["asr", "--tokenizer", args.tokenizer, "--manifest", out / "manifests" / "test"]
    asked += ["--templates", args.templates, "--units", out / "units" / "test"]
    asked += ["--batch-size", 16, "--max-new-tokens", 64]
    step("evaluate.py", *asked, "--model", args.model, "--out", out / "before")
    write_atomically(out / "finetune.toml", recipe(args, checkpoint))
    if code := step("train.py", "--config", out / "finetune.toml"):
        return int(code)  # asked to stop, all saved
    step("evaluate.py", *asked, "--model", out / "run", "--out", out / "after")
    if not (out / "export").exists():
        tokenizer = ["--tokenizer", args.tokenizer, "--card.licence", args.licence]
        step("convert_ckpt.py", "export", "--source", out / "run", *tokenizer, "--out", out / "export")
    print(f"\nready: {out}/run, and for transformers {out}/export")
    return 0


def listed(folder: Path) -> dict[str, list[dict[str, str]]]:
    """A row for each recording that has words."""
    sounds = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)
    rows = []
    for path in sounds:
        words = path.with_suffix(".txt")
        if not words.is_file():
            raise DataError(f"{path}: no {words.name} beside it; write down what is said there")
        name = path.relative_to(folder)
        text = " ".join(words.read_text(encoding="utf-8").split())
        rows.append({"id": str(name.with_suffix("")).replace("/", "-"), "audio": str(name), "text": text})
    if len(rows) < 2:
        raise DataError(f"{folder}: {len(rows)} recordings ({', '.join(SOUNDS)}); give at least two, one is held out")
    return {"train": [row for n, row in enumerate(rows) if n % HELD_OUT], "test": rows[::HELD_OUT]}


def prepare(out: Path, part: str, args: argparse.Namespace) -> None:
    """Manifest, units and datasets of one part."""
    made, units, tool = out / "manifests" / part, out / "units" / part, "prepare_data.py"
    about = ["--name", "own", "--split", part, "--licence", args.licence, "--source", args.audio, "--language", "en"]
    if not made.exists():
        files = ["--files", out / f"{part}.jsonl", "--audio-root", args.audio]
        step(tool, "manifest", "jsonl", *files, *about, "--out", made)
    step(tool, "units", "--manifest", made, "--codec", args.codec, "--out", units)
    for task in ("asr", "tts"):
        given = ["--manifest", made, "--units", units, "--tokenizer", args.tokenizer]
        given += ["--tokens", args.tokenizer / "token_map.json", "--templates", args.templates]
        given += ["--out", out / task / part]
        step(tool, "build", "--task", task, *given)


def recipe(args: argparse.Namespace, checkpoint: Path) -> str:
    """The model's own recipe, with this data in place of its own."""
    base, out = load_recipe(checkpoint / RECIPE), args.out.resolve()
    tasks = [one.name for one in fields(base.data) if isinstance(getattr(base.data, one.name), TaskConfig)]
    changes: dict[str, Any] = {f"data.{task}": {} for task in tasks}  # none of what it has learnt before
    for task in ("asr", "tts"):
        changes[f"data.{task}"] = {"weight": 0.5, "train": [f"{out}/{task}/train"], "valid": [f"{out}/{task}/test"]}
    changes |= {
        "name": "finetune",
        "checkpoint.folder": f"{out}/run",
        "checkpoint.start_from": str(checkpoint.resolve()),
    }
    changes |= {"checkpoint.keep_optimizer": False, "forgetting.valid": [], "samples.count": 0, "train.ramp_from": 0}
    changes |= {"train.steps": args.steps, "train.schedule": "linear", "train.learning_rate": args.learning_rate}
    changes |= {"train.warmup_steps": args.steps // 20, "train.decay_steps": 0, "train.ramp_steps": 0}
    changes |= {"train.batch_counts": "rows", "train.global_batch_size": args.batch, "train.micro_batch_size": 1}
    changes |= {"train.validate_every": max(1, args.steps // 4), "checkpoint.every": max(1, args.steps // 4)}
    changes |= {"tokens.backbone": "file", "tokens.file": str((args.tokenizer / "token_map.json").resolve())}
    changes |= {"data.validation_documents": 60, "engine.kind": "plain"}
    return dump(replace(base, changes))


def step(tool: str, *words: object) -> Any:
    """One command, in this process: a process of its own would import for longer than most of them work."""
    said = [str(word) for word in words]
    print(f"\n$ tools/{tool} " + shlex.join(said), flush=True)
    return RUN[tool](said)


if __name__ == "__main__":
    run_command(main)
