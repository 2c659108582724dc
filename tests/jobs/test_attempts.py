"""Attempts of a run and what follows them, without Slurm: what counts as progress, who owns the run, when it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_most.errors import MostError
from megatron_most.jobs import book
from megatron_most.jobs.status import tell
from megatron_most.jobs.verdict import Outcome, decide


def save(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)


def begin(run: Path, job: str = "7", restart: int = 0) -> book.Attempt:
    return book.begin_attempt(run, {"job": job, "restart": restart, "nodes": "n[1-2]"})


def test_attempts_that_saved_nothing_are_counted_back_to_the_last_that_did(tmp_path: Path) -> None:
    begin(tmp_path)
    save(tmp_path, 4)
    for _ in range(2):
        begin(tmp_path)  # lost with their nodes: no end.json
    assert book.count_fruitless(book.read_book(tmp_path), "7", now=4) == 2
    assert book.count_fruitless(book.read_book(tmp_path), "7", now=5) == 0
    assert book.count_fruitless(book.read_book(tmp_path), "8", now=4) == 0, "another job begins anew"


def test_an_attempt_that_was_turned_back_by_preflight_is_not_one_without_progress(tmp_path: Path) -> None:
    for _ in range(3):
        attempt = begin(tmp_path)
        book.end_attempt(attempt, {"action": "leave", "code": 75, "reason": "n2: no GPU", "step": 0})
    assert book.count_fruitless(book.read_book(tmp_path), "7", now=0) == 0
    assert book.count_turned_back(book.read_book(tmp_path), "7", 0) == 3
    assert book.count_turned_back(book.read_book(tmp_path), "7", 4) == 0, "it has got on since"


def test_an_older_attempt_may_not_say_done(tmp_path: Path) -> None:
    old, new = begin(tmp_path), begin(tmp_path, restart=1)
    save(tmp_path, 12)
    with pytest.raises(MostError, match="attempt 2 has begun, so attempt 1 is over"):
        book.say_done(tmp_path, old)
    assert not book.is_done(tmp_path, 12)
    book.say_done(tmp_path, new)
    assert book.is_done(tmp_path, 12) and not book.is_done(tmp_path, 13)


def test_a_done_that_is_said_while_another_attempt_begins_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, write = begin(tmp_path), book.write_atomically

    def write_late(path: Path, words: str) -> None:
        monkeypatch.undo()
        begin(tmp_path, restart=1)
        write(path, words)

    monkeypatch.setattr(book, "write_atomically", write_late)
    with pytest.raises(MostError, match="attempt 2 has begun"):
        book.say_done(tmp_path, old)
    assert not (tmp_path / "DONE").exists()


def test_a_stop_of_an_attempt_goes_with_it_and_that_of_a_person_stays(tmp_path: Path) -> None:
    book.ask_to_stop(tmp_path, begin(tmp_path), "the time limit is near")
    assert not book.clear_stop(tmp_path) and not (tmp_path / "stop").exists()
    (tmp_path / "stop").write_text("")
    assert book.clear_stop(tmp_path) and (tmp_path / "stop").exists()


@pytest.mark.parametrize(
    ("outcome", "saved", "fruitless", "action", "words"),
    [
        (Outcome(codes={0: 0}, srun=0), 12, 0, "done", "12 of them"),
        (Outcome(codes={0: 0}, srun=0, asked=True), 12, 0, "done", "12 of them"),
        (Outcome(codes={0: 75}, srun=0, asked=True), 8, 0, "requeue", "time limit is near; step 8 is saved"),
        (Outcome(codes={0: 75}, srun=0, cancelled=True), 8, 0, "stop", "scancel"),
        (Outcome(codes={0: 75}, srun=0, stop_file=True), 8, 0, "stop", "remove the file `stop`"),
        (Outcome(codes={0: 75}, srun=0), 8, 0, "requeue", "by a signal to their step"),
        (Outcome(codes={0: 75}, srun=137, lost=True), 8, 0, "requeue", "a link between two nodes is cut"),
        (Outcome(codes={0: 1, 3: 2}, srun=2), 8, 0, "stop", "rank 3 ended with an error"),
        (Outcome(codes={0: 1, 5: 137}, srun=137), 8, 0, "requeue", "rank 5 was killed by signal 9"),
        (Outcome(codes={0: 1}, srun=1), 8, 0, "requeue", "srun's code 1"),
        (Outcome(codes={}, srun=137, lost=True), 8, 0, "requeue", "a link between two nodes is cut"),
        (Outcome(codes={}, srun=137, lost=True), 4, 1, "requeue", "link"),
        (Outcome(codes={0: 1}, srun=1), 4, 2, "stop", "2 attempts in a row have saved nothing beyond step 4"),
        (Outcome(codes={0: 75}, srun=0, asked=True), 4, 2, "stop", "time limit is near; 2 attempts in a row"),
    ],
)
def test_what_follows(outcome: Outcome, saved: int, fruitless: int, action: str, words: str) -> None:
    found = decide(outcome, 4, saved, fruitless)
    assert (found.action, found.code == 0) == (action, action == "done")
    assert words in found.reason


def test_status_tells_state_pace_and_the_last_error(tmp_path: Path) -> None:
    first, second = begin(tmp_path), begin(tmp_path, restart=1)
    (first.folder / "log").write_text("noise\ntrain.py [rank 3]: /x: No space left on device; make room\nmore noise\n")
    book.end_attempt(first, {"action": "stop", "code": 2, "reason": "rank 3 ended with an error", "step": 0})
    lines: list[dict] = [{"attempt": 1, "step": 0, "steps": 100}]
    lines += [{"step": step, "seconds": 2.0, "effective": 0.5} for step in range(10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save(tmp_path, 8)
    said = tell(tmp_path, "6|PENDING|1:00|Priority\n7|RUNNING|2:03:04|None\n")
    assert "RUNNING, 2:03:04 left" in said and "10 of 100, 8 saved; 0:03:00 to go" in said and "50.0%" in said
    assert f"attempt  {second.number}" in said and "No space left on device; make room" in said
    assert "gone without a word" in tell(tmp_path, "6|PENDING|1:00|Priority\n")
    said = tell(tmp_path)
    assert "not known, for squeue gives no answer" in said and "gone" not in said and "10 of 100" in said


def test_status_tells_what_it_can_of_damaged_files_and_sends_nothing_to_a_terminal(tmp_path: Path) -> None:
    good = '{"step": 3, "steps": 9, "seconds": 1.0}'
    bad = (
        '{"step": 4, "seconds": NaN}', '{"step": 4, "seconds": 1e300}', '{"step": "x", "seconds": 1}',
        '{"seconds": 2}', '{"step": 4, "seconds": 1, "effective": "hi"}',
    )  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join((*bad, good)) + "\n")
    attempt = begin(tmp_path)
    (attempt.folder / "end.json").write_text("{}")
    said = tell(tmp_path, "")
    assert "step     4 of 9" in said and "last end attempt 1: ?" in said
    (attempt.folder / "end.json").write_text(json.dumps({"action": "stop", "reason": "red\x1b[31m\nand more"}))
    assert "red?[31m?and more" in tell(tmp_path, "")


def test_a_folder_that_is_no_run_is_refused_by_status(tmp_path: Path) -> None:
    with pytest.raises(MostError, match="no run of a launcher"):
        tell(tmp_path)
