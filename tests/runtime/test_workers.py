"""Work over several processes: in order, a few pieces at a time, and nobody hangs or is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_most.errors import DataError
from megatron_most.runtime import in_order

FORK = multiprocessing.get_context("fork")


def test_a_dead_worker_ends_the_run_with_one_error() -> None:
    def die(piece: int) -> int:
        if piece == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return piece

    with pytest.raises(DataError, match="a worker process was killed"):
        list(in_order(die, range(20), 2))


def test_pieces_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def pieces() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = in_order(lambda x: x * 2, pieces(), 2)
    assert next(results) == (0, 0) and len(taken) <= 6
    assert [value for _, value in results] == [2 * n for n in range(1, 100)]


def test_an_error_in_a_worker_is_the_callers() -> None:
    def fail(piece: int) -> int:
        raise DataError(f"piece {piece}")

    with pytest.raises(DataError, match="piece 0"):
        list(in_order(fail, range(5), 2))


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    def work(piece: int) -> int:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.01)
        return piece

    def parent() -> None:
        for _ in in_order(work, range(10**6), 2):
            pass

    process = FORK.Process(target=parent)
    process.start()
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    process.kill()
    process.join()
    until = time.monotonic() + 60
    while alive := [pid for pid in map(int, os.listdir(tmp_path)) if is_running(pid)]:
        assert time.monotonic() < until, f"still running: {alive}"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
