"""Run one test body on several ranks: `run_ranks(body, 4, *args)` returns what `body(ranks, *args)` returned on each.

CPU ranks are forked, for a spawned one would import torch and Core again; GPU ranks are spawned, for a GPU context does
not survive a fork. Ranks meet through a file in a temporary folder, or over TCP where a test is about just that. If any
rank fails, `RanksFailed` holds how each of them ended, so that a test can claim the same error on every rank.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import pytest

from megatron_most.runtime import (
    CPU_BACKEND,
    GPU_BACKEND,
    Launch,
    find_device,
    gpu_generation,
    num_devices,
    process_group,
)  # fmt: skip

BACKENDS = [CPU_BACKEND, pytest.param(GPU_BACKEND, marks=pytest.mark.gpu)]  # run_ranks skips where GPUs are too few


@dataclass(frozen=True)
class Outcome:
    """How one rank ended."""

    rank: int
    exit_code: int | None  # negative: the signal that killed it
    error: str | None  # class name of the exception it raised; None if it raised none or was ended from outside
    message: str
    stderr: str
    hung: bool  # still alive at the timeout, then killed


class RanksFailed(AssertionError):
    """At least one rank did not return; `outcomes` has one entry per rank, in order."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes
        hung = [o.rank for o in outcomes if o.hung]
        lines = [f"ranks {hung} hung" if hung else "a rank failed"]
        for o in outcomes:
            lines.append(f"--- rank {o.rank}: exit code {o.exit_code}, {o.error}: {o.message}\n{o.stderr}")
        super().__init__("\n".join(lines))


@functools.cache
def warm() -> None:
    """Import what forked ranks need, once in the parent: an import costs seconds per rank, a fork 0.1 s."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    compilers = ("torch._dynamo", "torch._inductor.compile_fx")  # which torch's optimizers and DeepSpeed load
    for name in ("torch.distributed", *compilers, "megatron.core.models.gpt", "deepspeed"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child's collector need not look through all these modules again, nor copy their pages


def has_hopper() -> bool:
    """Whether the first GPU is of that generation."""
    import torch

    return num_devices() > 0 and gpu_generation(torch.device("cuda", 0)) == (9, 0)


def run_ranks(
    body: Callable[..., Any],
    world_size: int,
    *args: Any,
    backend: str = CPU_BACKEND,
    timeout: float = 120.0,
    meet: Literal["file", "tcp"] = "file",
    hang_after_s: float = 0.0,
) -> list[Any]:
    """Call `body(ranks, *args)` on each rank, inside its process group, and return the results in rank order.

    On GPUs body and args must be picklable, which a function of a test module is. Raises RanksFailed.
    """
    on_gpu = backend == GPU_BACKEND
    if on_gpu and num_devices() < world_size:
        pytest.skip(f"needs {world_size} gpus, {num_devices()} here")
    if not on_gpu:
        warm()
    context: Any = multiprocessing.get_context("spawn" if on_gpu else "fork")
    limits = (timeout, hang_after_s)
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        where = {"store_file": folder / "store"} if meet == "file" else {"port": free_port()}
        ranks = [
            Launch(rank=r, world_size=world_size, local_rank=r, local_world_size=world_size, **where)
            for r in range(world_size)
        ]
        processes = [context.Process(target=_be, args=(rank, on_gpu, limits, folder, body, args)) for rank in ranks]
        try:
            for process in processes:
                process.start()
            hung = _await(processes, timeout)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        outcomes = [_outcome(folder, r, process.exitcode, r in hung) for r, process in enumerate(processes)]
        # A rank that left by os._exit(0) has not returned either.
        if any(o.exit_code != 0 or not (folder / f"result-{o.rank}").exists() for o in outcomes):
            raise RanksFailed(outcomes)
        import torch

        return [torch.load(folder / f"result-{r}", weights_only=False) for r in range(world_size)]


def launch_ranks(body: Callable[..., int], world_size: int, *args: Any, timeout: float = 120.0) -> list[int]:
    """Fork processes that each call `body(launch, *args)`, which starts its own group; the codes they end with."""
    processes = start_ranks(body, world_size, *args)
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def start_ranks(body: Callable[..., int], world_size: int, *args: Any) -> list[BaseProcess]:
    """The same, without waiting for them."""
    warm()
    context: Any = multiprocessing.get_context("fork")
    store = Path(tempfile.mkdtemp(prefix="ranks-")) / "store" if world_size > 1 else None
    ranks = [
        Launch(rank=r, world_size=world_size, local_rank=r, local_world_size=world_size, store_file=store)
        for r in range(world_size)
    ]
    processes = [context.Process(target=_end_with, args=(body, rank, args)) for rank in ranks]
    for process in processes:
        process.start()
    return processes


def _end_with(body: Callable[..., int], launch: Launch, args: tuple) -> None:
    import torch

    torch.set_num_threads(1)  # before any torch work, as in _be
    code = 1
    try:
        code = body(launch, *args)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _be(
    launch: Launch, on_gpu: bool, limits: tuple[float, float], folder: Path, body: Callable[..., Any], args: tuple
) -> None:
    """The life of one rank. It ends by os._exit, so nothing of the parent's that it inherited runs at its end."""
    import torch

    torch.set_num_threads(1)  # before any torch work: the parent's thread pool did not survive the fork
    stderr = open(folder / f"stderr-{launch.rank}", "w", buffering=1)
    os.dup2(stderr.fileno(), 2)
    sys.stderr = stderr  # pytest has put an object of its own there
    faulthandler.register(signal.SIGUSR1, file=stderr)
    code = 0
    try:
        with process_group(launch, find_device("gpu" if on_gpu else "cpu", launch.local_rank), *limits) as ranks:
            value = body(ranks, *args)
        torch.save(value, folder / f"result-{launch.rank}")
    except BaseException as error:
        traceback.print_exc()
        outcome = {"error": type(error).__name__, "message": str(error)}
        (folder / f"error-{launch.rank}").write_text(json.dumps(outcome))
        code = 1
    sys.stdout.flush()
    stderr.flush()
    os._exit(code)


def _await(processes: list[BaseProcess], timeout: float) -> list[int]:
    """The ranks still alive after `timeout` seconds; each has then written where its threads stand to its stderr."""
    until = time.monotonic() + timeout
    while (alive := [p for p in processes if p.is_alive()]) and time.monotonic() < until:
        wait([p.sentinel for p in alive], until - time.monotonic())
    for process in alive:
        os.kill(process.pid or 0, signal.SIGUSR1)
    if alive:
        time.sleep(0.5)
    return [rank for rank, process in enumerate(processes) if process in alive]


def _outcome(folder: Path, rank: int, exit_code: int | None, hung: bool) -> Outcome:
    path, stderr = folder / f"error-{rank}", folder / f"stderr-{rank}"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"error": None, "message": ""}
    text = stderr.read_text(errors="replace") if stderr.exists() else ""
    return Outcome(rank, exit_code, found["error"], found["message"], text, hung)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
