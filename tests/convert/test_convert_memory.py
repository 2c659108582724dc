"""A conversion holds one tensor at a time, its gate included: its memory does not grow with the model, as
from_pretrained's does.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from megatron_most.convert import Upcycling
from tests.checkpoint.small import in_child
from tests.convert.folders import back, into_ours, save
from tests.harness import warm
from tests.hf_models import deepseek, llama

_MMAP_THRESHOLD = -3  # of malloc.h: M_MMAP_THRESHOLD
BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, ModuleType]:
    """The bench's folder at `ci` scale, and its bytes."""
    import sys

    sys.path.insert(0, str(BENCH))
    try:
        import convert as bench  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(BENCH))
    warm()  # imports are not the conversion's
    importlib.import_module("transformers.models.deepseek_v2.modeling_deepseek_v2")
    folder = tmp_path_factory.mktemp("memory") / "hf"
    return folder, bench.make_folder(folder, bench.SCALES["ci"], dense=True), bench


def grown_by(body: Callable[[], object], note: Path, first: Callable[[], object] = lambda: None) -> int:
    """By how many bytes a process's memory grew at most while it did something, mapped files included.

    `first` is done before the count: what it loads is not the conversion's, and how much was loaded depends on the
    tests before.
    """

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])

    def run() -> None:
        libc = ctypes.CDLL("libc.so.6")
        # Large blocks go back to the kernel when they are freed. As it comes, glibc keeps some of them, now and then.
        assert libc.mallopt(_MMAP_THRESHOLD, 1 << 20)
        first()
        gc.collect()
        libc.malloc_trim(0)  # what is free again would be taken again, uncounted
        os.sync()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = status("VmRSS")
        body()
        note.write_text(str(status("VmHWM") - before))

    process = in_child(run)
    process.join()
    assert process.exitcode == 0
    return int(note.read_text())


def test_import_and_export_take_a_fraction_of_the_model_and_from_pretrained_all_of_it(
    made: tuple[Path, int, ModuleType], tmp_path: Path
) -> None:
    hf, size, _ = made
    largest = 102400 * 512 * 2  # the embedding
    assert size > 6 * largest / 2

    small = save(deepseek(), tmp_path / "small")

    def load(hf: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        AutoModelForCausalLM.from_pretrained(hf, dtype=torch.bfloat16)

    def there(hf: Path, ours: str) -> None:
        into_ours(hf, tmp_path / ours, expert=4, gate=True)

    def again(ours: str) -> None:
        back(tmp_path / ours, tmp_path / f"{ours}-again", shard_size="100MB", gate=True)

    note = tmp_path / "note"
    into = grown_by(lambda: there(hf, "ours"), note, lambda: there(small, "first"))
    out = grown_by(lambda: again("ours"), note, lambda: again("first"))
    theirs = grown_by(lambda: load(hf), note, lambda: load(small))
    print(f"{size=} {largest=} {into / size=:.2f} {out / size=:.2f} {theirs / size=:.2f}")
    assert max(into, out) < 3 * largest
    assert theirs > 0.9 * size > 1.5 * max(into, out)


def test_upcycling_holds_a_matrix_and_no_feed_forward_of_three(tmp_path: Path) -> None:
    import torch

    width, inner = 768, 8192
    shape: dict[str, int] = dict(hidden_size=width, intermediate_size=inner, num_hidden_layers=1)
    hf = save(llama(**shape).to(torch.bfloat16), tmp_path / "hf")
    small = save(llama(**{**shape, "intermediate_size": 64}).to(torch.bfloat16), tmp_path / "small")
    options = Upcycling(group_sizes=("text=1", "audio=1"), top_k=1, noise=0.1, jitter=0.1, drop=0.5)
    grown = grown_by(
        lambda: into_ours(hf, tmp_path / "ours", upcycle=options),
        tmp_path / "note",
        lambda: into_ours(small, tmp_path / "first", upcycle=options),
    )
    matrix = 2 * width * inner
    size = sum(path.stat().st_size for path in (tmp_path / "ours").glob("weights-*"))
    print(f"{grown / 1e6:.1f} MB, a matrix {matrix / 1e6:.1f} MB, {size / 1e6:.1f} MB written")
    assert size > 9 * matrix
    assert grown < matrix + 32e6  # blocks of numbers, whatever the size
