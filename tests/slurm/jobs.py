"""Jobs of the unmodified launchers on the sandbox: submit them, wait for what they do, read what they left."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from megatron_most.config import load_recipe, replace
from tests.phases import losses, run
from tests.slurm import harm
from tests.slurm.sandbox import Sandbox

_ROOT = Path(__file__).resolve().parents[2]
EVERY = 4
SMALL = (  # rows that two ranks cannot share evenly
    "--device cpu --model.num-layers 2 --train.sequence-length 128 --train.batch-counts rows --data.window 64 "
    f"--train.global-batch-size 5 --train.validate-every 0 --checkpoint.every {EVERY} --checkpoint.keep 0 "
    "--telemetry.every 0 --telemetry.no-tensorboard --train.epsilon 1e-5"
).split()


class Bench:
    """What a test works with."""

    def __init__(self, box: Sandbox, data: Path, folder: Path, python: str) -> None:
        self.box, self.data, self.folder = box, data, folder
        self.runs = folder / "runs"
        self.run = self.runs / "stage1-tiny"
        self._jobs: list[str] = []
        folder.mkdir(parents=True)
        (folder / "clone").symlink_to(_ROOT)
        self.env = {
            "MOST_PYTHON": python, "MOST_DATA": str(data), "MOST_RUNS": str(self.runs), "MOST_BACKBONE": "none",
            "MOST_STAGE1_RECIPE": "stage1-tiny", "MOST_STAGE2_RECIPE": "stage2-tiny", "MOST_WATCH_S": "2",
            "MOST_FREE_GB": "0.001",
        }  # fmt: skip
        self.write_env()

    def write_env(self, **more: str) -> None:
        self.env |= more
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.env.items()]
        (self.folder / "cluster.env").write_text("\n".join(lines) + "\n")

    def close(self) -> None:
        for path in [*self.folder.glob("*.log"), *sorted(self.runs.glob("*/slurm/*/*log"))]:
            lines = path.read_text(errors="replace").splitlines()
            print(f"--- {path.relative_to(self.folder)}", *lines[-25:], sep="\n")  # shown where a test fails
        self._cancel_all()
        harm.heal(self.box)
        for name in self.box.names:
            if name in self.box.not_ready():
                self.box.stop(name)
                harm.power_on(self.box, name)
        self.box.wait(self._cancel_all, 60, "an empty queue")

    def _cancel_all(self) -> bool:
        """Whether nothing is left. A job that is being requeued is back after it was cancelled."""
        left = self.box.on("head", "squeue", "-h", "-o", "%A").stdout.split()
        for job in {*left, *self._jobs}:
            self.box.on("head", "scancel", job, check=False)
        return not left

    # --- jobs ---

    def submit(self, *options: str, steps: int = 12, fields: tuple[str, ...] = ()) -> str:
        """Phase 1, with options of sbatch and fields of a recipe."""
        words = [*options, self.script("stage1_asr_tts"), *SMALL, "--train.steps", str(steps), *fields]
        job = self.box.sbatch(*words, cwd=self.folder, MOST_CLUSTER_ENV=str(self.folder / "cluster.env"))
        self._jobs.append(job)
        return job

    def script(self, name: str) -> str:
        """A launcher, in a clone at such a path."""
        return str(self.folder / "clone" / "launch" / f"{name}.sh")

    def on_head(self, *command: str) -> str:
        """A command of the login node, as a user gives it."""
        words = ["env", f"--chdir={self.folder}", f"MOST_CLUSTER_ENV={self.folder / 'cluster.env'}", *command]
        return self.box.on("head", *words).stdout

    def note(self, *jobs: str) -> None:
        """Jobs to be cleared away that were submitted otherwise."""
        self._jobs += jobs

    def said(self, job: str) -> str:
        """The job's own log, of all its attempts."""
        return "".join(path.read_text() for path in self.folder.glob(f"*-{job}.log"))

    # --- runs ---

    def attempt(self, number: int) -> Path:
        return self.run / "slurm" / f"attempt-{number:04d}"

    def end(self, number: int) -> dict[str, Any]:
        return json.loads((self.attempt(number) / "end.json").read_text())

    def begin(self, number: int) -> dict[str, Any]:
        return json.loads((self.attempt(number) / "begin.json").read_text())

    def done(self) -> dict[str, Any]:
        return json.loads((self.run / "DONE").read_text())

    def step(self) -> int:
        """Steps that the run's log holds now."""
        try:
            said = (self.run / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return 0
        return sum('"gradient_norm"' in line for line in said.splitlines())

    def saved(self) -> int:
        return max((int(path.name[5:]) for path in (self.run / "checkpoints").glob("step-*")), default=0)

    def drafts(self) -> list[Path]:
        """Of checkpoints that have no name yet."""
        return list((self.run / "checkpoints").glob(".step-*"))

    def await_saved(self, step: int, seconds: float = 180) -> None:
        self.box.wait(lambda: self.saved() >= step, seconds, f"step {step} being saved")

    def await_attempt(self, number: int, seconds: float = 120) -> None:
        self.box.wait((self.attempt(number) / "begin.json").exists, seconds, f"attempt {number}")

    def losses(self) -> dict[int, float]:
        """Of all attempts, each step once and in order."""
        return losses(self.run)

    def losses_of_one_process(self, run_folder: Path | None = None, **changes: Any) -> dict[int, float]:
        """The same recipe, never interrupted, without Slurm."""
        twin = self.folder / f"twin-{time.monotonic_ns()}"
        config = load_recipe(sorted(((run_folder or self.run) / "checkpoints").glob("step-*"))[-1] / "resolved.toml")
        run(replace(config, {"checkpoint.folder": str(twin), "checkpoint.every": 0, **changes}))
        return losses(twin)


def python_that(folder: Path, case: str) -> str:
    """An interpreter that does one thing differently: `case` is bash, before the real one takes over."""
    path = folder / "python that differs"
    path.write_text(f'#!/bin/bash\n{case}\nexec {shlex.quote(sys.executable)} "$@"\n')
    path.chmod(0o755)
    return str(path)
