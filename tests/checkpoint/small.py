"""Checkpoints of a few small tensors whose content is a function of the step, so that a wrong one shows.

`die_before` ends a forked child by SIGKILL, or stops it, just before the n-th time that it touches the folder: every
moment at which a kill makes a difference is tried, none by chance.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_most.checkpoint import KINDS, LocalTensors, Piece, Record, Saver, Shelf, TensorReader, verify_files
from megatron_most.errors import CheckpointError
from megatron_most.runtime import Claim

FORK = multiprocessing.get_context("fork")
TENSORS = {
    "layer.weight": ((12, 5), torch.float32),
    "fc1.weight": ((8, 3), torch.float32),
    "half.weight": ((3, 3), torch.bfloat16),
    "scale": ((), torch.float32),
    "nothing": ((0, 4), torch.float32),
    "seen": ((2,), torch.int64),
}
WITHOUT_MOMENTS = {"seen"}
HIDDEN = (".step-", ".old-", ".replaced-", ".latest")


def piece(
    name: str, whole: tuple[int, ...], start: tuple[int, ...] = (), shape: tuple[int, ...] | None = None
) -> Piece:
    """A box of a whole tensor that is all of a local one."""
    nothing = (0,) * len(whole)
    return Piece(name, whole, start or nothing, whole if shape is None else shape, name, nothing)


def small_pieces() -> dict[str, list[Piece]]:
    """All of TENSORS on one rank; fc1 in two boxes, as gate and up projections are."""
    boxes = {name: [piece(name, shape)] for name, (shape, _) in TENSORS.items()}
    halves = [Piece("fc1.weight", (8, 3), (at, 0), (4, 3), "fc1.weight", (at, 0)) for at in (0, 4)]
    return {**boxes, "fc1.weight": halves}


def state(step: int, by: int = 0) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(kind, local name, tensor) as an engine gives them; `by` tells attempts apart."""
    for salt, (name, (shape, dtype)) in enumerate(TENSORS.items()):
        for kind in KINDS[:1] if name in WITHOUT_MOMENTS else KINDS:
            first = 1000 * step + 100 * salt + 10_000_000 * by + KINDS.index(kind)
            yield kind, name, (torch.arange(torch.Size(shape).numel()) + first).reshape(shape).to(dtype)


def make_saver(folder: Path, claim: Claim | None = None, keep: int = 0) -> Saver:
    return Saver(Shelf(folder), small_pieces(), claim, keep=keep, versions={"torch": "2"})


def save(saver: Saver, step: int, by: int = 0) -> None:
    saver.write(saver.snapshot(step, state(step, by), {"step": step, "by": by}, {"recipe.toml": f"step = {step}\n"}))
    saver.wait()


def save_all(folder: Path, *steps: int, keep: int = 0) -> Shelf:
    saver = make_saver(folder, keep=keep)
    for step in steps:
        save(saver, step)
    return saver.shelf


def newest(folder: Path) -> tuple[int, int]:
    """(step, by) of the newest whole checkpoint, whose content is proven to be just that."""
    found = Shelf(folder).find_newest(verify_files)
    assert found is not None, "no checkpoint at all"
    require_exact(*found)
    return found[1].training["step"], found[1].training["by"]


def require_exact(folder: Path, record: Record) -> None:
    """The checkpoint holds what was saved at its step, and nothing else."""
    step, by = record.training["step"], record.training["by"]
    assert record.step == step
    tensors = LocalTensors(TensorReader(folder, record), small_pieces())
    for kind, name, wanted in state(step, by):
        found = tensors.read(kind, name, wanted.shape)
        assert found is not None and found.dtype == wanted.dtype and torch.equal(found, wanted), (kind, name)
    assert (folder / "recipe.toml").read_text() == f"step = {step}\n"
    listed = {*record.files, "manifest.json", "manifest.sha256"}
    assert {path.name for path in folder.iterdir()} == listed


def whole_steps(folder: Path) -> dict[int, int]:
    """step -> by of every checkpoint that has its name; each of them must be whole."""
    from megatron_most.checkpoint import read_record

    found = {}
    for path in folder.glob("step-*"):
        record = read_record(path)
        verify_files(path, record)
        require_exact(path, record)
        assert path.name == f"step-{record.step:08d}"
        found[record.step] = record.training["by"]
    return found


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(HIDDEN))


def in_child(body: Callable[[], None]) -> Any:
    """Start `body` in a forked process that runs nothing else of ours at its end."""

    def run() -> None:
        torch.set_num_threads(1)
        try:
            body()
        except CheckpointError as error:
            print(error, file=sys.stderr)
            os._exit(3)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    return process


def die_before(folder: Path, number: int, how: signal.Signals = signal.SIGKILL) -> None:
    """In a forked child: let the n-th opening, renaming, making or removing below the folder not take place."""
    root, left = str(folder), [number]
    touching = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in touching and any(isinstance(arg, str | os.PathLike) and _below(root, arg) for arg in args[:2]):
            left[0] -= 1
            if left[0] < 0:
                left[0] = 1 << 60
                os.kill(os.getpid(), how)

    sys.addaudithook(hook)


def _below(root: str, path: str | os.PathLike[str]) -> bool:
    """Removals within an open folder name only the last part."""
    text = os.fspath(path)
    return text.startswith(root) or not os.path.isabs(text)


@contextlib.contextmanager
def ended(process: Any) -> Iterator[Any]:
    """Never leave a child behind."""
    try:
        yield process
    finally:
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        process.join()
