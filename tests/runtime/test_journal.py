"""Jobs that are killed at any moment end in the same bytes; two of them never write one folder."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_most.errors import DataError
from megatron_most.runtime import Journal, claim, is_done, open_journal
from megatron_most.runtime import claim as claim_function

FORK = multiprocessing.get_context("fork")
claims = __import__("sys").modules["megatron_most.runtime.claim"]
JOB = {"kind": "count", "to": 60, "seed": [1, 2]}
FILES = ("numbers.bin", ".sizes.bin")


def count(out: Path, job: dict = JOB, pause: float = 0.0) -> None:
    """A job of 60 commits, whose bytes depend on all before."""
    if is_done(out, job):
        return
    with open_journal(out, job, FILES) as journal:
        at = journal.progress["next"] if journal.progress else 0
        for number in range(at, 60):
            data = random.Random(number).randbytes(100 + number)
            journal.write("numbers.bin", data[:50])
            time.sleep(pause)
            journal.write("numbers.bin", data[50:])
            journal.write(".sizes.bin", bytes([number]))
            journal.commit({"next": number + 1})
        journal.seal(lambda part: total(part, journal))


def total(part: Path, journal: Journal) -> None:
    (part / "total.txt").write_text(str(len((part / "numbers.bin").read_bytes())))
    assert journal.progress == {"next": 60}


def start(body: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=body)
    process.start()
    return process


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_twenty_kills_leave_the_bytes_of_an_unbroken_run(tmp_path: Path) -> None:
    count(tmp_path / "unbroken")
    draw, kills = random.Random(0), 0

    def written() -> int:
        with contextlib.suppress(FileNotFoundError):  # at first, and once the folder has its name
            return (tmp_path / "killed.part" / ".journal.jsonl").stat().st_size
        return 0

    for attempt in range(200):
        before = written()
        process = start(lambda: count(tmp_path / "killed", pause=0.002))
        while process.is_alive() and written() <= before:
            time.sleep(0.001)  # each comes a little further, however slow the machine is
        time.sleep(draw.uniform(0, 0.01))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if (tmp_path / "killed").exists():
            break
        assert attempt < 199
    count(tmp_path / "killed")
    assert kills >= 5  # it really was interrupted; each attempt commits some of the 60
    assert content(tmp_path / "killed") == content(tmp_path / "unbroken")
    assert set(content(tmp_path / "killed")) == {"job.json", "numbers.bin", "total.txt"}


def test_a_torn_last_line_and_bytes_behind_the_commit_are_cut_off(tmp_path: Path) -> None:
    with open_journal(tmp_path / "a", JOB, FILES) as journal:
        journal.write("numbers.bin", b"kept")
        journal.commit({"next": 1})
        journal.write("numbers.bin", b"lost")
    with open(tmp_path / "a.part" / ".journal.jsonl", "ab") as lines:
        lines.write(b'{"sizes": {"numbers.bin": 8, ".si')
    with open_journal(tmp_path / "a", JOB, FILES) as journal:
        assert journal.progress == {"next": 1}
        assert (tmp_path / "a.part" / "numbers.bin").read_bytes() == b"kept"


def test_a_data_file_shorter_than_its_commit_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path / "a", JOB, FILES) as journal:
        journal.write("numbers.bin", b"kept")
        journal.commit({"next": 1})
    os.truncate(tmp_path / "a.part" / "numbers.bin", 2)
    with pytest.raises(DataError, match="2 bytes, but 4 were written"), open_journal(tmp_path / "a", JOB, FILES):
        pass


def test_another_job_never_continues_this_one(tmp_path: Path) -> None:
    with open_journal(tmp_path / "a", JOB, FILES) as journal:
        journal.write("numbers.bin", b"work")
        journal.commit({"next": 0})
    with pytest.raises(DataError, match="begun with to = 60, now 61; it holds finished work: .* or remove this one"):
        count(tmp_path / "a", {**JOB, "to": 61})
    shutil.rmtree(tmp_path / "a.part")
    count(tmp_path / "a")
    with pytest.raises(DataError, match="begun with to = 60, now 61"):
        count(tmp_path / "a", {**JOB, "to": 61})
    before = content(tmp_path / "a")
    count(tmp_path / "a")
    assert content(tmp_path / "a") == before


def test_the_setting_that_differs_is_named_however_deep_it_is(tmp_path: Path) -> None:
    long = {"hash": "0" * 200, "generation": {"mode": "text", "temperature": 0.0}}
    count(tmp_path / "a", {**JOB, "config": long})
    now = {**long, "generation": {"mode": "text", "temperature": 0.7}}
    with pytest.raises(DataError, match=r"begun with config\.generation\.temperature = 0\.0, now 0\.7"):
        count(tmp_path / "a", {**JOB, "config": now})


@pytest.mark.parametrize("commits", [False, True], ids=["before the first commit", "with nothing but reports"])
def test_a_try_that_came_to_nothing_is_no_hindrance(tmp_path: Path, commits: bool) -> None:
    (tmp_path / "a.part").mkdir()
    (tmp_path / "a.part" / "sub").mkdir()
    with open_journal(tmp_path / "a", {"other": "job"}, ("words.txt", "bad.txt"), ["bad.txt"]) as journal:
        journal.write("bad.txt", b"all of them\n")
        if commits:
            journal.commit({"at": 7})
    with open_journal(tmp_path / "a", JOB, FILES, ["bad.txt"]) as journal:
        assert journal.progress is None
    assert {path.name for path in (tmp_path / "a.part").iterdir()} == {"job.json", ".journal.jsonl", *FILES, "sub"}
    (tmp_path / "a.part" / "sub").rmdir()
    count(tmp_path / "a")
    count(tmp_path / "unbroken")
    assert content(tmp_path / "a") == content(tmp_path / "unbroken")


def test_a_folder_that_is_no_jobs_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "a.part").mkdir()
    (tmp_path / "a.part" / "mine.txt").write_text("precious")
    with open_journal(tmp_path / "a", JOB, FILES):
        pass
    assert (tmp_path / "a.part" / "mine.txt").read_text() == "precious"


def test_a_kill_between_the_rename_and_the_tidying_leaves_nothing_behind(tmp_path: Path) -> None:
    count(tmp_path / "a")
    whole = content(tmp_path / "a")
    (tmp_path / "a" / ".sizes.bin").write_bytes(b"left over")
    (tmp_path / "a" / ".claim-000001").write_bytes(b"{}")
    count(tmp_path / "a")
    assert content(tmp_path / "a") == whole


def test_a_second_process_is_refused_while_the_first_lives_and_follows_it_when_killed(tmp_path: Path) -> None:
    first = start(lambda: count(tmp_path / "a", pause=0.5))
    while not (tmp_path / "a.part" / ".claim-000001").exists():
        time.sleep(0.01)
    with pytest.raises(DataError, match=f"process {first.pid} on .* is writing here"):
        count(tmp_path / "a")
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    count(tmp_path / "a")
    count(tmp_path / "unbroken")
    assert content(tmp_path / "a") == content(tmp_path / "unbroken")


def test_a_holder_that_was_taken_over_publishes_nothing(tmp_path: Path) -> None:
    with open_journal(tmp_path / "a", JOB, FILES) as journal:
        (tmp_path / "a.part" / ".claim-000002").write_text("{}")
        journal.write("numbers.bin", b"stale")
        with pytest.raises(DataError, match="another process has taken this folder over"):
            journal.commit({"next": 1})
        with pytest.raises(DataError, match="another process has taken this folder over"):
            journal.seal(lambda part: None)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("beats", [True, False], ids=["beating", "silent"])
def test_a_claim_of_another_machine_stands_while_its_heart_beats(
    tmp_path: Path, beats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "DEAD_AFTER_S", 1.0)
    path = tmp_path / ".claim-000007"
    path.write_text(json.dumps({"host": "far", "process": 1, "started": 1, "boot": "another boot"}))

    def beat() -> None:
        while True:
            time.sleep(0.1)
            os.utime(path)

    heart = start(beat) if beats else None
    try:
        if beats:
            with pytest.raises(DataError, match="process 1 on far is writing here"), claim(tmp_path):
                pass
        else:
            with claim(tmp_path) as own:
                assert own.number == 8
    finally:
        if heart:
            heart.kill()
            heart.join()


@pytest.mark.parametrize(("restart", "is_taken"), [(0, True), (1, False)])
def test_a_requeued_job_takes_over_from_its_earlier_start_though_that_one_lives(
    tmp_path: Path, restart: int, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a node that was cut off it lives on, heartbeat and all."""
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    own = {**claims.this_process(), "job": "c 7", "restart": restart}  # alive by any look
    (tmp_path / ".claim-000003").write_text(json.dumps(own))
    if not is_taken:
        with pytest.raises(DataError, match="is writing here"), claim(tmp_path):
            pass
        return
    with claim(tmp_path) as taken:
        assert taken.number == 4
        assert json.loads((tmp_path / ".claim-000004").read_text())["restart"] == 1


def test_of_many_that_race_for_a_dead_claim_exactly_one_gets_it(tmp_path: Path) -> None:
    (tmp_path / ".claim-000001").write_text("{torn")
    claims_taken, refused = tmp_path / "taken", tmp_path / "refused"
    claims_taken.mkdir()
    refused.mkdir()

    def race(number: int) -> None:
        try:
            with claim_function(tmp_path):
                (claims_taken / str(number)).touch()
                until = time.monotonic() + 60
                while len(list(refused.iterdir())) < 7 and time.monotonic() < until:  # however late they come
                    time.sleep(0.05)
        except DataError:
            (refused / str(number)).touch()

    (tmp_path / ".claim-000001").write_text(json.dumps({**claims.this_process(), "process": 4_000_000, "started": 5}))
    racers = [start(lambda number=number: race(number)) for number in range(8)]
    for racer in racers:
        racer.join()
    assert len(list(claims_taken.iterdir())) == 1 and len(list(refused.iterdir())) == 7


def test_a_full_disk_is_one_clear_error_and_the_job_goes_on_when_there_is_room(tmp_path: Path) -> None:
    count(tmp_path / "unbroken")

    def limited() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            count(tmp_path / "a")
        except DataError as error:
            os._exit(7 if "; make room, then run the same command again" in str(error) else 8)
        os._exit(9)

    process = start(limited)
    process.join()
    assert process.exitcode == 7 and not (tmp_path / "a").exists()
    count(tmp_path / "a")
    assert content(tmp_path / "a") == content(tmp_path / "unbroken")
