"""What modalities among experts are worth: models of as many active parameters, on the same data, for as many steps.

    .venv/bin/python bench/ablation.py                   # or: make ablation
    .venv/bin/python bench/ablation.py --scale ci        # every variant on next to nothing; learns nothing

It learns from the sentences that `make demo` has spoken (runs/quickstart), or where they are not there from the made-up
language of examples/two_phases. Every run is a command of the product, as many at once as there are cores. Started
again, it goes on where it stopped. In the end: a table, results.json and bars (see ablation_page.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ablation_page import TASKS, Result, draw, fill, table

from megatron_most.config import dump, load_recipe, replace
from megatron_most.errors import DataError
from megatron_most.runtime import num_cores, progress, run_command, write_atomically

ROOT = Path(__file__).resolve().parents[1]
SHARES = {"asr": 0.6, "tts": 0.3, "text-lm": 0.1}  # of the documents
PARENT = "the dense model before it is upcycled"
WIDTH = 96
"""Of an expert's inside. A token always goes through three of them, or through what is as wide as three."""


@dataclass(frozen=True)
class Scale:
    steps: int
    changes: Mapping[str, Any] = field(default_factory=dict)


SCALES = {
    "full": Scale(300),
    "ci": Scale(
        4,
        {
            "model.num_layers": 2, "train.global_batch_size": 2, "train.micro_batch_size": 2,
            "data.validation_documents": 4,
        },
    ),
}  # fmt: skip
SMALL: dict[str, Any] = {
    "model.attention": "gqa", "model.hidden_size": 96, "model.num_layers": 4, "model.num_heads": 4,
    "model.num_kv_heads": 4, "model.head_dim": 24, "model.rope": "plain", "model.max_positions": 1024,
    "model.dense_hidden_size": 3 * WIDTH, "moe.num_experts": 8, "moe.top_k": 2, "moe.expert_hidden_size": WIDTH,
    "moe.shared_hidden_size": WIDTH, "moe.dense_layers": [], "train.sequence_length": 256,
    "train.global_batch_size": 8, "train.micro_batch_size": 8, "train.learning_rate": 3e-3, "train.schedule": "wsd",
    "train.end_ratio": 0.02, "data.validation_documents": 60, "telemetry.tensorboard": False,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "MAMoE": {},
    "vanilla MoE": {"moe.groups": ["text+audio+wave: 0-7"], "moe.shared_only_tags": []},
    "no shared expert": {
        "moe.shared_hidden_size": 0, "moe.top_k": 3, "moe.groups": ["text: 0-3", "audio+wave: 4-7"],
        "moe.shared_only_tags": [],
    },
    "dense": {"moe.num_experts": 0},
    "upcycled from dense": {"moe.normalise_top_k": True},
    "partition: 2 text, 6 audio": {"moe.groups": ["text: 0-1", "audio: 2-7"]},
    "partition: 6 text, 2 audio": {"moe.groups": ["text: 0-5", "audio: 6-7"]},
    "gate and loss of the release": {"moe.gate": "reference", "moe.aux_loss": "reference"},
}  # fmt: skip


_running: set[subprocess.Popen[bytes]] = set()
_is_asked_to_stop = threading.Event()


@dataclass(frozen=True)
class Job:
    """One run, and what it starts from."""

    name: str
    seed: int
    changes: Mapping[str, Any]
    parent: Job | None = None

    @property
    def folder(self) -> str:
        return f"{''.join(c if c.isalnum() else '-' for c in self.name.lower())}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="datasets of the demo, or of examples/two_phases")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder for everything made")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of first weights and order of data")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--steps", type=int, help="another number")
    parser.add_argument("--at-once", type=int, default=num_cores(), help="runs beside each other")
    parser.add_argument("--page", type=Path, help="a page whose table is to be replaced; its .json and .svg beside it")
    args = parser.parse_args()
    scale, data = SCALES[args.scale], find_data(args.data, args.out)
    jobs = plan(args.only, args.seeds, args.steps or scale.steps, scale.changes)
    signal.signal(signal.SIGTERM, _stop)
    with ThreadPoolExecutor(args.at_once) as pool:
        many = map if args.at_once == 1 else pool.map
        done = many(lambda job: learn(job, data, args.out), jobs)
        results = list(progress(done, f"runs, of {len(jobs)}", "run"))
    text = json.dumps([asdict(result) for result in results], indent=1) + "\n"
    write_atomically(args.out / "results.json", text)
    draw(results, args.out / "ablation.svg")
    print(table(results))
    if args.page is not None:
        write_atomically(args.page, fill(args.page.read_text(encoding="utf-8"), results))
        write_atomically(args.page.with_suffix(".json"), text)
        draw(results, args.page.with_suffix(".svg"))


def plan(names: Sequence[str], seeds: Sequence[int], steps: int, changes: Mapping[str, Any]) -> list[Job]:
    """Every run, each of `steps` steps; an upcycled model's first quarter is its dense parent's."""
    decay, first, jobs = max(1, steps * 3 // 10), max(1, steps // 4), []
    rise = {"train.warmup_steps": min(40, first - 1)}
    for seed in seeds:
        for name in names:
            given = {**SMALL, **changes, **VARIANTS[name], "train.seed": seed}
            fall = {"train.steps": steps, "train.decay_steps": decay, **rise}
            parent = None
            if name == "upcycled from dense":
                grown = {"moe.num_experts": 0, "model.dense_hidden_size": WIDTH, "moe.normalise_top_k": False}
                before = {**given, **grown, **rise, "train.steps": first, "train.schedule": "constant"}
                parent = Job(PARENT, seed, before)
                fall |= {"train.steps": steps - first, "train.warmup_steps": 0, "model.dense_hidden_size": WIDTH}
            jobs.append(Job(name, seed, {**given, **fall}, parent))
    return jobs


def find_data(given: Path | None, out: Path) -> Path:
    """The folder whose asr/train, tts/train, ... are to be learnt; made where there is none."""
    quickstart, made = ROOT / "runs" / "quickstart", out / "data"
    folder = given or (quickstart if (quickstart / "sets" / "text-lm" / "valid").exists() else made)
    if folder == made:
        call(out / "logs" / "data", "examples/two_phases/prepare.py", "--out", made)
    if not (sets_of(folder) / "text-lm" / "valid").exists() or not (folder / "tokenizer").exists():
        raise DataError(
            f"{folder}: no text-lm/valid or no tokenizer there; give --data runs/quickstart, or leave it out"
        )
    return folder


def sets_of(data: Path) -> Path:
    return data / "sets" if (data / "sets").exists() else data


def learn(job: Job, data: Path, out: Path) -> Result:
    """Train, unless it is done; and what it came to."""
    run = out / "runs" / job.folder
    if not is_done(run, job):
        if _is_asked_to_stop.is_set():
            raise DataError("stopped; the same command goes on here")
        recipe, start = out / "recipes" / f"{job.folder}.toml", None
        if job.parent is not None:
            learn(job.parent, data, out)
            start = upcycle(job.parent, data, out)
        recipe.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(recipe, dump(recipe_of(job, data, run, start)))
        call(out / "logs" / job.folder, "tools/train.py", "--config", recipe)
    size, losses = told(run)
    return Result(name=job.name, seed=job.seed, losses=losses, **size)


def recipe_of(job: Job, data: Path, run: Path, start: Path | None) -> Any:
    sets, changes = sets_of(data).resolve(), dict(job.changes)
    for task, share in SHARES.items():
        at = f"data.{task.replace('-', '_')}"
        changes |= {f"{at}.weight": share, f"{at}.train": [str(sets / task / "train")]}
        changes |= {f"{at}.valid": [str(sets / task / "valid")]}
    changes |= {"name": job.folder, "tokens.backbone": "file"}
    changes |= {"tokens.file": str((data / "tokenizer" / "token_map.json").resolve())}
    changes |= {"train.validate_every": changes["train.steps"], "checkpoint.folder": str(run.resolve())}
    if start is not None:
        changes["checkpoint.start_from"] = str(start.resolve())
    return replace(load_recipe("most-tiny"), changes)


def upcycle(parent: Job, data: Path, out: Path) -> Path:
    """The parent as a Hugging Face folder, and that as a model whose experts are copies of its feed-forward."""
    hf, made, log = (out / kind / parent.folder for kind in ("hf", "upcycled", "logs"))
    convert = "tools/convert_ckpt.py"
    if not hf.exists():
        call(log, convert, "export", "--source", out / "runs" / parent.folder, "--out", hf, "--no-gate")
    if not made.exists():
        sizes = ["--upcycle.group-sizes", "text=4", "audio=4", "--upcycle.seed", parent.seed]
        tokens = ["--token-map", data / "tokenizer" / "token_map.json"]
        call(log, convert, "import", "--source", hf, *sizes, *tokens, "--no-gate", "--out", made)
    return made


def told(run: Path) -> tuple[dict[str, int], dict[str, float]]:
    """(parameters, losses on held-out documents after the last step) of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    [size, *_] = [line["parameters"] for line in lines if "parameters" in line]
    return size, {line["validation"]: line["loss"] for line in lines if line.get("validation") in TASKS}


def is_done(run: Path, job: Job) -> bool:
    """Whether it has been looked at after its last step, and saved."""
    done = run / "checkpoints" / f"step-{job.changes['train.steps']:08d}"
    return done.exists() and (run / "metrics.jsonl").exists() and {*TASKS} == {*told(run)[1]}


def call(log: Path, program: str, *words: object) -> None:
    """A command of the product, on one thread; what it says goes into a file."""
    said = [str(word) for word in words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.with_suffix(".log").open("a", encoding="utf-8") as file:
        print(f"\n$ {program} {shlex.join(said)}", file=file, flush=True)
        command = [sys.executable, str(ROOT / program), *said]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env)
        _running.add(process)
        if _is_asked_to_stop.is_set():
            process.terminate()
        code = process.wait()
        _running.discard(process)
    if code:
        raise DataError(f"{program} ended with code {code}; see {file.name}. The same command goes on here")


def _stop(*_: object) -> None:
    """All runs finish their step and save; nothing else is begun."""
    _is_asked_to_stop.set()
    for process in tuple(_running):
        process.terminate()


if __name__ == "__main__":
    run_command(main)
