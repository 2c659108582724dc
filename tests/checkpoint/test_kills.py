"""A process that is killed at any moment of saving leaves the checkpoints that were there, or the new one besides."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_most.checkpoint import Shelf
from megatron_most.runtime import claim
from tests.checkpoint.small import (
    die_before,
    ended,
    in_child,
    left_over,
    make_saver,
    newest,
    save,
    save_all,
    whole_steps,
)
from tests.checkpoint.test_shelf import latest

KILLS = 24


def run(folder: Path, said: int, keep: int) -> None:
    """One attempt: goes on from the newest checkpoint, saves every step, and says what it has saved."""
    with claim(folder):
        shelf = Shelf(folder)
        shelf.clear_drafts()
        os.write(said, f"clean {len(left_over(folder))}\n".encode())
        step = newest(folder)[0] if shelf.steps() else 0
        saver = make_saver(folder, keep=keep)
        while True:
            step += 1
            save(saver, step)
            os.write(said, f"saved {step}\n".encode())


@pytest.mark.parametrize("keep", [1, 2])
def test_kills_at_random_moments_cost_at_most_the_checkpoint_being_written(tmp_path: Path, keep: int) -> None:
    draw, published, in_the_middle = random.Random(keep), 0, 0
    for _ in range(KILLS):
        reading, writing = os.pipe()
        with ended(in_child(lambda writing=writing: run(tmp_path, writing, keep))) as process:
            os.close(writing)
            said = b""
            while said.count(b"saved") < 1:  # it holds the claim, and is saving the next
                said += (more := os.read(reading, 1 << 16))
                assert more, "the attempt has failed"
            time.sleep(draw.uniform(0, 0.03))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            while more := os.read(reading, 1 << 16):
                said += more
            os.close(reading)
        assert b"clean 0" in said  # what the attempt before left unfinished is gone
        published = max(published, *(int(line.split()[1]) for line in said.splitlines() if b"saved" in line))
        in_the_middle += any(name.startswith(".step-") for name in left_over(tmp_path))
        step, _ = newest(tmp_path)
        assert published <= step <= published + 1
        named = whole_steps(tmp_path)  # each folder that has its name is whole
        assert step == max(named) and keep <= len(named) <= keep + 1 or published < keep
        assert latest(tmp_path) in (step, step - 1)
        published = step
    assert in_the_middle >= KILLS // 4  # kills did strike while a checkpoint was being written


def kill_everywhere(
    tmp_path: Path,
    before: Callable[[Path], object],
    act: Callable[[Path], object],
    check: Callable[[Path, bool], None],
    first: int = 0,
) -> int:
    """Kill `act` before each touch of the folder in turn, each time on a new copy; how many kills that took."""
    before(tmp_path / "before")
    for number in range(first, 1000):
        folder = tmp_path / "now"
        shutil.copytree(tmp_path / "before", folder)

        def body(number: int = number, folder: Path = folder) -> None:
            die_before(folder, number)
            act(folder)

        with ended(in_child(body)) as process:
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            check(folder, process.exitcode == 0)
            Shelf(folder).clear_drafts()
            check(folder, process.exitcode == 0)
            assert not left_over(folder)
        shutil.rmtree(folder)
        if process.exitcode == 0:
            return number - first
    raise AssertionError("it never came to its end")


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it has written; only a power cut does."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_a_kill_at_any_touch_of_the_disk_leaves_the_old_newest_or_the_new_one(tmp_path: Path) -> None:
    outcomes = set()

    def check(folder: Path, is_done: bool) -> None:
        found, named = newest(folder), whole_steps(folder)
        outcomes.add(found)
        assert found in ([(3, 1)] if is_done else [(2, 0), (3, 1)])
        assert set(named) <= {1, 2, 3} and latest(folder) <= found[0]
        assert not is_done or (set(named) == {3} and latest(folder) == 3)

    kills = kill_everywhere(
        tmp_path,
        before=lambda folder: save_all(folder, 1, 2),
        act=lambda folder: save(make_saver(folder, keep=1), 3, by=1),
        check=check,
    )
    assert kills > 40 and outcomes == {(2, 0), (3, 1)}


@pytest.mark.parametrize("steps", [(2,), (1, 2, 3, 5)], ids=str)
def test_a_kill_while_a_run_that_went_back_saves_again_leaves_the_old_course_or_the_new(
    tmp_path: Path, steps: tuple[int, ...]
) -> None:
    """Step 2 is saved again: the same step and all later ones are replaced by one rename, or not at all."""
    outcomes = []

    def check(folder: Path, is_done: bool) -> None:
        found = newest(folder)
        outcomes.append(found)
        assert found in ([(2, 1)] if is_done else [(steps[-1], 0), (2, 1)])
        if found[1] == 0 and not left_over(folder):  # cleared: all of the old course is back
            assert whole_steps(folder) == dict.fromkeys(steps, 0)
        elif not left_over(folder):
            assert whole_steps(folder) == {**{step: 0 for step in steps if step < 2}, 2: 1}

    kills = kill_everywhere(
        tmp_path,
        before=lambda folder: save_all(folder, *steps),
        act=lambda folder: save(make_saver(folder), 2, by=1),
        check=check,
        first=20,  # files of the draft are the business of the test above
    )
    assert kills > 15 and outcomes[0] == (steps[-1], 0) and outcomes[-1] == (2, 1)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_while_old_ones_are_removed_never_takes_the_newest(tmp_path: Path, keep: int) -> None:
    def check(folder: Path, is_done: bool) -> None:
        assert newest(folder) == (3, 0)
        named = set(whole_steps(folder))
        assert {3, 2, 1} >= named >= {3, 2}.difference(range(4 - keep)) and (not is_done or len(named) == keep)

    kills = kill_everywhere(
        tmp_path,
        before=lambda folder: save_all(folder, 1, 2, 3),
        act=lambda folder: Shelf(folder).thin_out(keep),
        check=check,
    )
    assert kills >= 7 * (3 - keep)


def test_a_kill_while_drafts_are_cleared_loses_nothing_either(tmp_path: Path) -> None:
    def before(folder: Path) -> None:
        """As a kill between the putting aside and the rename leaves it, and a draft, and something half removed."""
        save_all(folder, 1, 2, 3, 4)
        for step in (2, 3, 4):
            (folder / f"step-{step:08d}").rename(folder / f".replaced-by-00000002.step-{step:08d}")
        shutil.copytree(folder / "step-00000001", folder / ".step-00000002.attempt-1.x")
        shutil.copytree(folder / "step-00000001", folder / ".old-x.step-00000001")

    def check(folder: Path, is_done: bool) -> None:
        assert newest(folder) == (4, 0)
        if not left_over(folder):
            assert whole_steps(folder) == dict.fromkeys((1, 2, 3, 4), 0)

    assert kill_everywhere(tmp_path, before, lambda folder: Shelf(folder).clear_drafts(), check) > 10
