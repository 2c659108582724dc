"""The attempts of a run under Slurm, one numbered folder each; and whether they get anywhere.

    RUN/slurm/attempt-0003/   begin.json  end.json  log  codes/RANK.CODE  preflight.facts
    RUN/DONE                  all steps are taken and saved

An attempt is there by the making of its folder, so two can never be the same, and the highest number owns the run: an
older one that still lives, on a node that was cut off, may neither say DONE nor requeue. A node that is lost takes the
batch script with it, so an attempt may have no end.json.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.errors import MostError
from megatron_most.runtime import write_atomically

DONE, STOP, BOOK = "DONE", "stop", "slurm"
_ATTEMPT = re.compile(r"attempt-(\d{4,})")
_STEP = re.compile(r"step-(\d{8,})")
_MARK = "written by attempt"


@dataclass(frozen=True)
class Attempt:
    """One start of the run by Slurm."""

    number: int
    folder: Path
    begin: Mapping[str, Any]
    """job, restart, nodes, step, at"""
    end: Mapping[str, Any] | None
    """action, code, reason, step, at; None while it goes on, and where it was lost with its node."""

    @property
    def is_turned_back(self) -> bool:
        """It ended before training, because of a node."""
        return self.end is not None and self.end["action"] == "leave"

    @property
    def is_going_on(self) -> bool:
        """Its job trains, or waits in the queue to do so again."""
        return self.end is None or self.end["action"] in ("requeue", "leave")


def newest_step(run: Path) -> int:
    """Of the checkpoints that are there by name; 0 without any."""
    found = (_STEP.fullmatch(path.name) for path in (run / "checkpoints").glob("step-*"))
    return max((int(name[1]) for name in found if name), default=0)


def read_book(run: Path) -> list[Attempt]:
    """All attempts, the oldest first."""
    found = []
    for folder in (run / BOOK).glob("attempt-*"):
        if (name := _ATTEMPT.fullmatch(folder.name)) and (begin := _read(folder / "begin.json")):
            found.append(Attempt(int(name[1]), folder, begin, _read(folder / "end.json")))
    return sorted(found, key=lambda attempt: attempt.number)


def begin_attempt(run: Path, facts: Mapping[str, Any]) -> Attempt:
    """Open the next one; `facts` are kept with it."""
    book = run / BOOK
    book.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(n[1]) for p in book.iterdir() if (n := _ATTEMPT.fullmatch(p.name))), default=0)
    while True:
        folder = book / f"attempt-{number:04d}"
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
    (folder / "codes").mkdir()
    begin = {**facts, "step": newest_step(run), "at": time.time()}
    write_atomically(folder / "begin.json", json.dumps(begin) + "\n")
    return Attempt(number, folder, begin, None)


def end_attempt(attempt: Attempt, words: Mapping[str, Any]) -> None:
    write_atomically(attempt.folder / "end.json", json.dumps({**words, "at": time.time()}) + "\n")


def require_newest(run: Path, attempt: Attempt) -> None:
    """Raise where a newer attempt owns the run: nothing may be published or requeued any more."""
    newest = max((other.number for other in read_book(run)), default=0)
    if newest > attempt.number:
        raise MostError(
            f"{run}: attempt {newest} has begun, so attempt {attempt.number} is over: it says no DONE and requeues "
            "nothing"
        )


def say_done(run: Path, attempt: Attempt) -> None:
    require_newest(run, attempt)
    words = {"attempt": attempt.number, "job": attempt.begin.get("job"), "step": newest_step(run), "at": time.time()}
    write_atomically(run / DONE, json.dumps(words) + "\n")
    try:
        require_newest(run, attempt)  # one may have begun meanwhile, and withdrawn a DONE that was not there yet
    except MostError:
        if (_read(run / DONE) or {}).get("attempt") == attempt.number:
            withdraw_done(run)
        raise


def withdraw_done(run: Path) -> None:
    """A run that is made longer is not done, for whoever waits for that."""
    (run / DONE).unlink(missing_ok=True)


def is_done(run: Path, steps: int) -> bool:
    """Whether DONE says so, of as many steps as the recipe has."""
    words = _read(run / DONE)
    return words is not None and words.get("step", 0) >= steps


def count_fruitless(book: Sequence[Attempt], job: str, now: int) -> int:
    """How many of a job's last attempts, one after the other, have saved nothing; `now` is the newest step.

    Those that were turned back before training count neither way.
    """
    count, after = 0, now
    for attempt in reversed(book):
        if attempt.begin.get("job") != job:
            break
        if attempt.is_turned_back:
            continue
        if after > attempt.begin["step"]:
            break
        count, after = count + 1, attempt.begin["step"]
    return count


def count_turned_back(book: Sequence[Attempt], job: str, step: int) -> int:
    """How often a job has left bad nodes behind since it got to this step: those of weeks of training do not add up."""
    mine = (attempt for attempt in book if attempt.begin.get("job") == job and attempt.begin["step"] >= step)
    return sum(attempt.is_turned_back for attempt in mine)


def ask_to_stop(run: Path, attempt: Attempt, why: str) -> None:
    """By a file, which a run that is still starting finds as well."""
    write_atomically(run / STOP, f"{_MARK} {attempt.number}: {why}\n")


def clear_stop(run: Path) -> bool:
    """Take away a `stop` of one of our attempts; whether another one, of a person, is there."""
    path = run / STOP
    try:
        is_ours = path.read_text(errors="replace").startswith(_MARK)
    except FileNotFoundError:
        return False
    if is_ours:
        path.unlink(missing_ok=True)
    return not is_ours


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
