"""Ranks whose nodes show them different files never go on from different checkpoints.

Each rank works in a folder of its own and all of them use the same relative path: one path, two views.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from megatron_most.checkpoint import Shelf, verify_files
from megatron_most.checkpoint import shelf as shelves
from megatron_most.errors import CheckpointError
from megatron_most.runtime import Ranks
from tests.checkpoint.small import make_saver, save, save_all
from tests.harness import run_ranks


@pytest.fixture
def views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps 1 and 2 as rank 0 sees them; rank 1 still sees another step 2, of an attempt that was replaced."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    save_all(tmp_path / "rank-0" / "run", 1, 2)
    save_all(tmp_path / "rank-1" / "run", 1)
    save(make_saver(tmp_path / "rank-1" / "run"), 2, by=1)
    return tmp_path


def find(ranks: Ranks, views: Path, catches_up_after: float | None) -> tuple[str, int, int]:
    """(kind of error, step, whose) that this rank finds."""
    shelves.STALE_S = 1.0 if catches_up_after is None else 20.0
    os.chdir(views / f"rank-{ranks.rank}")
    if ranks.rank == 1 and catches_up_after is not None:

        def catch_up() -> None:
            time.sleep(catches_up_after)
            shutil.rmtree("run/step-00000002")
            time.sleep(0.3)  # now it is not there at all
            shutil.copytree(views / "rank-0" / "run" / "step-00000002", "run/step-00000002")

        threading.Thread(target=catch_up, daemon=True).start()
    try:
        found = Shelf("run").find_newest(verify_files)
    except CheckpointError as error:
        return f"{type(error).__name__}: {error}", 0, 0
    assert found is not None
    return "", found[1].step, found[1].training["by"]


def test_a_rank_that_looks_at_another_folder_is_named_and_nothing_is_passed_over(views: Path) -> None:
    first, second = run_ranks(find, 2, views, None, timeout=60)
    assert first == second
    assert first[0].startswith(
        "OtherView: rank 1: run/step-00000002/manifest.sha256 is another than rank 0 sees after 1 s"
    )


def test_a_rank_whose_view_is_late_waits_for_it(views: Path) -> None:
    assert run_ranks(find, 2, views, 1.0, timeout=60) == [("", 2, 0)] * 2


def test_a_rank_that_sees_nothing_is_named_too(views: Path) -> None:
    shutil.rmtree(views / "rank-1" / "run")
    first, second = run_ranks(find, 2, views, None, timeout=60)
    assert first == second and first[0].startswith("OtherView: rank 1: ") and "cannot be read" in first[0]
