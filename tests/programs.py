"""Run one of our programs as its user does: `run_program(ROOT / "tools/train.py", "--config", "most-tiny")`.

The process is forked from the warmed parent, as importing torch and Core anew costs ten seconds of processor time. It
has its own arguments, folder, environment, stdin, stdout and stderr, begins as `python FILE` does, and leaves its exit
code. With `ranks` it is as under torchrun on one machine. What is about the imports themselves starts a true one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.harness import free_port, warm


@dataclass(frozen=True)
class Done:
    """How a program ended; of several ranks all they said, in order, and the first code that is not 0."""

    returncode: int
    stdout: str
    stderr: str


def run_program(
    file: Path,
    *words: str | Path,
    ranks: int = 1,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 280.0,
) -> Done:
    """Run it to its end; `env` is added to this process's. TimeoutError if it does not end, with what it said."""
    with tempfile.TemporaryDirectory(prefix="program-") as name:
        folder, port = Path(name), str(free_port())
        processes = [
            start_program(
                file, *words, cwd=cwd, env={**(env or {}), **_rank(rank, ranks, port)}, said=folder / str(rank)
            )
            for rank in range(ranks)
        ]
        until = time.monotonic() + timeout
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        late = [process for process in processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        out, err = (
            "".join((folder / f"{rank}.{end}").read_text(errors="replace") for rank in range(ranks))
            for end in ("out", "err")
        )
        if late:
            raise TimeoutError(f"{file.name} had not ended after {timeout} s: {out[-1000:]}\n{err[-3000:]}")
        return Done(next((process.exitcode for process in processes if process.exitcode), 0), out, err)


def start_program(
    file: Path,
    *words: str | Path,
    said: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> BaseProcess:
    """The same, without waiting for it; stdout and stderr go to `said`.out and `said`.err."""
    warm()
    context: Any = multiprocessing.get_context("fork")
    process = context.Process(target=_be, args=(file, [str(word) for word in words], cwd, dict(env or {}), said))
    process.start()
    return process


def _rank(rank: int, ranks: int, port: str) -> dict[str, str]:
    if ranks == 1:
        return {}
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **{name: str(value) for name, value in here.items()}}


def _be(file: Path, words: list[str], cwd: Path | None, env: dict[str, str], said: Path) -> None:
    """The life of the program. It ends by os._exit, so nothing of the parent's that it inherited runs at its end."""
    import torch

    torch.set_num_threads(1)  # before any torch work, as in harness.py
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # pytest has put its own there
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.environ.update(env)
    file = file.resolve()
    os.chdir(cwd or os.getcwd())
    sys.argv, sys.path[0:0] = [str(file), *words], [str(file.parent)]
    for name in {path.stem for path in file.parent.glob("*.py")} & set(sys.modules):  # another program's, of that name
        del sys.modules[name]
    code = 1
    try:
        runpy.run_path(str(file), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:
        traceback.print_exc()
    for thread in threading.enumerate():  # python waits for them too
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
