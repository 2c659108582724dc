"""One task over all ranks, kept as it goes: a killed run continues, and comes to the same result.

The folder is `<out>.part` until all is done (runtime/journal.py). Every rank appends the records of its items to a file
of its own there; which rank takes which item does not matter, so a job may go on with more ranks or fewer. Rank 0 puts
the records in order, scores them and writes result.json. Items with a fault are tried again when the job goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_most.errors import DataError, MostError
from megatron_most.evaluate.result import RECORDS, RESULT, Result, read_result
from megatron_most.evaluate.sounds import Sounds, find_sounds
from megatron_most.evaluate.task import Record, Task
from megatron_most.runtime import (
    Journal,
    agree,
    get_logger,
    is_done,
    json_lines,
    open_file,
    open_journal,
    progress,
    write_atomically,
    writing,
)  # fmt: skip
from megatron_most.score import CONFIDENCE, SAMPLES

_NAME = "records-{:05d}.jsonl"
_LOOK_S = 0.2
_AGAIN = ", then run the same command again: it goes on from there"
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of the items are this rank's, and whether it writes: ranks that hold one model together do the same."""

    index: int = 0
    count: int = 1
    writes: bool = True
    rank: int = 0
    ranks: int = 1
    """All of the job, those that do not write too."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one job needs besides its task."""

    out: Path
    """The run's folder; each task has one below it."""
    model: dict[str, Any]
    """The model's facts; "hash" names its weights."""
    share: Share
    batch_size: int
    seeds: dict[str, int]
    """"bootstrap", and those of the task."""
    versions: dict[str, str]
    max_left_out: float = 0.0
    """The share of items that may be left out."""
    limit: int | None = None
    """Where only so many of the first items were asked for."""

    def data(self, task: Task) -> dict[str, Any]:
        return {**task.about.data, **({} if self.limit is None else {"limit": self.limit})}


def run_task(task: Task, setting: Setting) -> Result:
    """All ranks call it. DataError where too many items were left out; what the others came to is kept."""
    folder = setting.out / slug(task.name)
    job = {
        "what": "evaluation",
        "task": task.name,
        "model": setting.model["hash"],
        "precision": setting.model["precision"],
        "data": setting.data(task),
        "config": dict(task.about.config),
        "seeds": setting.seeds,
        "items": len(task),
    }
    with _opened(folder, job, setting.share) as journal:
        is_finished, token = _told_by_rank_0(journal, setting.share)
        sounds = find_sounds(task, setting.out, setting.share.rank, setting.share.ranks)
        if not is_finished:
            part = folder.with_name(f"{folder.name}.part")
            _run_all(task, setting, sounds, part, journal, token)
            _conclude(task, setting, sounds, part, journal, token)
    result = read_result(folder)
    if result.data.get("sounds", "") != sounds.hash:
        raise DataError(
            f"{folder}: was made of other sounds than those that are there now; put them back, or choose another --out"
        )
    _say(result)
    return result


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")


@contextlib.contextmanager
def _opened(folder: Path, job: dict[str, Any], share: Share) -> Iterator[Journal | None]:
    """Rank 0's journal, or None: on other ranks, and where all is done. Errors are everybody's."""
    with contextlib.ExitStack() as stack:
        journal, wrong = None, None
        if share.rank == 0:
            try:
                with writing(folder):
                    folder.parent.mkdir(parents=True, exist_ok=True)
                if not is_done(folder, job):
                    journal = stack.enter_context(open_journal(folder, job, ()))
            except MostError as error:
                wrong = error
        agree(wrong)
        yield journal


def _told_by_rank_0(journal: Journal | None, share: Share) -> tuple[bool, int]:
    """Whether it has found all of it done, and a number that no other attempt has; the same on all ranks."""
    import torch
    import torch.distributed as dist

    told = torch.tensor([int(share.rank == 0 and journal is None), secrets.randbits(48)])
    if dist.is_initialized():
        dist.broadcast(told, 0)
    return bool(told[0]), int(told[1])


def _wait_for(mark: Path, folder: Path | None = None) -> None:
    """Until a rank has left its mark, or the folder has its name. Collectives give up after minutes, but ranks may be
    hours apart; one that dies meanwhile ends all of us (runtime/watch.py).
    """
    while not mark.exists() and not (folder is not None and folder.exists()):
        time.sleep(_LOOK_S)


def _run_all(task: Task, setting: Setting, sounds: Sounds, part: Path, journal: Journal | None, token: int) -> None:
    """This rank's items that have no record yet."""
    share = setting.share
    done = {number for number, record in _read(part, sounds).items() if "fault" not in record}
    agree(None)  # all have read before anyone writes
    todo = [number for number in range(len(task)) if number not in done]
    mine = todo[share.index :: share.count]
    batches = [mine[at : at + setting.batch_size] for at in range(0, len(mine), setting.batch_size)]
    if done:
        _log.info("%s: %d of %d items are there already", part, len(done), len(task))
    wrong: Exception | None = None
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_append_to(part / _NAME.format(share.rank))) if share.writes else None
            for batch in progress(batches, task.name, "batch"):
                begun = time.perf_counter()
                records = task.run(batch)
                seconds = (time.perf_counter() - begun) / len(batch)
                if file is not None:
                    of_sound = [{"sound": sounds.digests[number]} for number in batch]
                    _write(file, part, batch, [{**a, **b} for a, b in zip(of_sound, records, strict=True)], seconds)
                if journal is not None:
                    journal.commit({"batches": len(batches)})
        except MostError as error:
            wrong = error
    with writing(part, _AGAIN):
        (part / f".ended-{token}-{share.rank}").touch()
    for rank in range(share.ranks):
        _wait_for(part / f".ended-{token}-{rank}")
    agree(wrong)


def _conclude(task: Task, setting: Setting, sounds: Sounds, part: Path, journal: Journal | None, token: int) -> None:
    """Rank 0 scores and seals; the others hear of errors."""
    wrong, scored = None, part / f".scored-{token}"
    if journal is not None:
        try:
            result, records, files = _score(task, setting, sounds, _read(journal.part, sounds))
            if not result.is_whole:
                _write_all(journal.part, result, records, files)
                raise DataError(_too_many(task, result, records, journal.part))
            journal.seal(lambda part: _finish(part, result, records, files))
        except MostError as error:
            wrong = error
            with writing(part, _AGAIN):
                scored.touch()
    else:
        _wait_for(scored, part.with_name(part.name.removesuffix(".part")))
    agree(wrong)


def _score(
    task: Task, setting: Setting, sounds: Sounds, found: dict[int, Record]
) -> tuple[Result, list[Record], dict[str, bytes]]:
    missing = [number for number in range(len(task)) if number not in found]
    if missing:
        raise DataError(f"{task.name}: {task.id(missing[0])} has no record; run the same command again")
    every = [found[number] for number in range(len(task))]
    seconds = [record.pop("seconds") for record in every]
    good = [record for record in every if "fault" not in record]
    left_out = Counter(record["fault"] for record in every if "fault" in record)
    if not good:
        first = next(record for record in every if "fault" in record)
        raise DataError(
            f"{task.name}: none of {len(every)} items could be evaluated; the first is {first['id']}: "
            f"{first['fault']}{': ' * bool(first['detail'])}{first['detail']}"
        )
    scored = task.score(good, setting.seeds["bootstrap"])
    amounts = {name: sum(record.get(name, 0) for record in good) for name in ("tokens", "audio_seconds")}
    took, about = sum(seconds), task.about
    result = Result(
        task=task.name,
        is_whole=left_out.total() <= setting.max_left_out * len(every),
        scores=dict(scored.scores),
        parts={by: dict(part) for by, part in scored.parts.items()},
        items=len(good),
        left_out=dict(left_out),
        model=setting.model,
        data={**setting.data(task), **({"sounds": sounds.hash} if sounds.hash else {})},
        config=dict(about.config),
        seeds=setting.seeds,
        bootstrap={"samples": SAMPLES, "confidence": CONFIDENCE, "over": "items"},
        speed={
            "seconds": round(took, 3),
            "items_per_second": len(every) * setting.share.count / max(took, 1e-9),
            "tokens_per_second": amounts["tokens"] * setting.share.count / max(took, 1e-9),
            "times_real_time": amounts["audio_seconds"] * setting.share.count / max(took, 1e-9),
        },
        ranks=setting.share.count,
        versions=setting.versions,
        notes=dict(scored.notes),
    )
    kept = iter(scored.records or good)
    return result, [record if "fault" in record else next(kept) for record in every], dict(scored.files)


def _write_all(part: Path, result: Result, records: Sequence[Record], files: dict[str, bytes]) -> None:
    with writing(part, _AGAIN):
        write_atomically(part / RECORDS, b"".join(map(_line, records)))
        for name, content in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(part / name, content)
        write_atomically(part / RESULT, result.to_json().encode(errors="backslashreplace"))


def _finish(part: Path, result: Result, records: Sequence[Record], files: dict[str, bytes]) -> None:
    _write_all(part, result, records, files)
    for path in part.glob("records-*.jsonl"):
        path.unlink()


def _too_many(task: Task, result: Result, records: Sequence[Record], part: Path) -> str:
    first = next(record for record in records if "fault" in record)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(result.left_out.items()))
    return (
        f"{task.name}: {sum(result.left_out.values())} of {len(records)} items could not be evaluated ({reasons}); the "
        f"first is {first['id']}: {first['detail'] or first['fault']}. What the others came to is in {part / RESULT}. "
        "Mend them and run the same command again, or allow a share with --max-left-out"
    )


def _read(part: Path, sounds: Sounds) -> dict[int, Record]:
    """Item -> its record, of all ranks of all attempts; a good one goes before a fault. Those of a sound that has
    changed do not count.
    """
    found: dict[int, Record] = {}
    for path in sorted(part.glob("records-*.jsonl")):
        with open_file(path) as file:
            for _, line in json_lines(file, path, lambda line: isinstance(line.get("number"), int)):
                number = line.pop("number")
                if line.pop("sound", "") != sounds.digests[number]:
                    continue
                if number not in found or "fault" in found[number]:
                    found[number] = line
    return found


@contextlib.contextmanager
def _append_to(path: Path) -> Iterator[BinaryIO]:
    """Open for appending; a line that a kill has torn is cut off, for the next would run on with it."""
    with writing(path.parent, _AGAIN):
        with open(path, "ab") as file:
            size = path.stat().st_size
            if size:
                with open_file(path) as there:
                    file.truncate(there.read().rfind(b"\n") + 1)
            yield file


def _write(file: BinaryIO, part: Path, batch: Sequence[int], records: Sequence[Record], seconds: float) -> None:
    assert len(records) == len(batch), f"{len(records)} records for {len(batch)} items"
    with writing(part, _AGAIN):
        for number, record in zip(batch, records, strict=True):
            file.write(_line({"number": number, **record, "seconds": seconds}))
        file.flush()
        os.fdatasync(file.fileno())


def _line(record: Record) -> bytes:
    """Half a character (of a strange file name, or of a JSON escape) is written as JSON's escape again."""
    return json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _say(result: Result) -> None:
    for name, score in result.scores.items():
        words = f"{score.value:.4f} ({score.low:.4f} to {score.high:.4f})"
        _log.info("%s: %s %s, over %d items", result.task, name, words, score.items)
