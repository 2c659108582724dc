"""A chain of commands that can be killed at any place: each is echoed, timed, and not done twice.

What is finished is written down in OUT/steps, one file a step, with its command. A step that was made with other words
is an error: a demo of half old and half new parts would show nothing.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_most.errors import DataError
from megatron_most.runtime import end_with_parent, write_atomically

ROOT = Path(__file__).resolve().parents[2]
RANKS = min(2, os.cpu_count() or 1)
"""Processes that train: on a model so small one with two threads is no faster than with one."""
ROOM_GB = 1.0
"""More than the demo takes, its checkpoints included."""
LEAST_GB = 0.1
"""For a demo that is all but done."""


def require_room(out: Path) -> None:
    """Before anything is made: a disk that fills up in the middle costs the step it was in."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    taken = sum(path.lstat().st_size for path in out.rglob("*")) / 1e9  # what was made before needs no room any more
    free, wanted = shutil.disk_usage(there).free / 1e9, max(ROOM_GB - taken, LEAST_GB)
    if free < wanted:
        raise DataError(
            f"{there}: {free:.1f} GB free, and the demo wants {wanted:.1g}; make room, or give another --out"
        )


class Steps:
    """The steps of one folder, in their order."""

    def __init__(self, out: Path, total: int) -> None:
        self._folder, self._total, self._number = out / "steps", total, 0
        self.seconds: dict[str, float] = {}
        self._folder.mkdir(parents=True, exist_ok=True)

    def command(
        self, name: str, program: str, *words: object, makes: Path | None = None, leaves: Path | None = None,
        ranks: int | None = None,
    ) -> None:  # fmt: skip
        """Run `program` (below the clone) with `words`. `makes`: what appears whole, and is refused where it is.
        `leaves`: what it leaves behind, else what follows --out: done is a step only as long as that is there.
        `ranks`: as so many processes.
        """
        said = [program, *(str(word) for word in words)]
        if leaves is None and "--out" in said:
            leaves = Path(said[said.index("--out") + 1])
        run_by, shown = [sys.executable], ""
        if ranks is not None:
            torchrun = ["--standalone", "--nproc-per-node", str(ranks)]
            run_by, shown = (
                [sys.executable, "-m", "torch.distributed.run", *torchrun],
                f"torchrun {' '.join(torchrun)} ",
            )

        def run() -> None:
            if makes is not None and makes.exists():
                return  # it was killed right after
            env = {"OMP_NUM_THREADS": "1", **os.environ} if ranks is not None else None
            code = subprocess.run(
                [*run_by, str(ROOT / program), *said[1:]], stdin=subprocess.DEVNULL, env=env, preexec_fn=end_with_parent
            ).returncode
            if code:
                raise DataError(f"{name}: {program} ended with code {code}; see above. The same command goes on here")

        self._step(name, said, f"$ {shown}{shlex.join(said)}", run, leaves)

    def own(
        self, name: str, facts: dict[str, object], words: str, run: Callable[[], None], leaves: Path | None = None
    ) -> None:
        """Something that the demo does itself."""
        self._step(name, [json.dumps(facts, sort_keys=True, default=str)], words, run, leaves)

    def _mark(self, name: str) -> dict[str, Any] | None:
        """What was written down of a step; None where it was not done, or nobody can read it any more."""
        try:
            made = json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        whole = isinstance(made, dict) and isinstance(made.get("command"), list)
        return made if whole and isinstance(made.get("seconds"), int | float) else None

    def _step(self, name: str, said: list[str], words: str, run: Callable[[], None], leaves: Path | None) -> None:
        self._number += 1
        head, mark = f"[{self._number}/{self._total}] {name}", self._folder / f"{name}.json"
        made = self._mark(name)
        if made is not None and leaves is not None and not leaves.exists():
            print(f"{head}: {leaves} is gone, so it is made again", flush=True)
            made = None
        if made is not None:
            if made["command"] != said:
                raise DataError(
                    f"{mark}: {name} was made by another command or other settings; remove {self._folder.parent}, or "
                    "give another --out"
                )
            self.seconds[name] = made["seconds"]
            print(f"{head}: done before", flush=True)
            return
        print(f"\n{head}\n{words}", flush=True)
        began = time.monotonic()
        run()
        self.seconds[name] = round(time.monotonic() - began, 1)
        write_atomically(mark, json.dumps({"command": said, "seconds": self.seconds[name]}) + "\n")
