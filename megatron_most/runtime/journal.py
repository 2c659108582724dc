"""Append-only files that continue after a kill, byte for byte as if nothing had happened.

A job writes into `<out>.part` and commits now and then: the data files reach the disk, then one line of the journal
with their sizes and the job's own progress. Opened again, files are cut back to the last whole line. `seal` renames the
folder to `<out>`: it is there whole or not at all. Names with a leading dot are scaffolding and go once the folder has
its name. The job's description stays with it, so that work under other settings is never continued, and work that is
done is not done twice. A try that failed before anything was made (reports of what was left out do not count) leaves
nothing to continue: the next one starts afresh, with whatever settings.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from megatron_most.errors import DataError
from megatron_most.runtime.claim import Claim, claim
from megatron_most.runtime.disk import cannot_read, writing
from megatron_most.runtime.files import sync_folder, write_atomically
from megatron_most.runtime.log import get_logger

JOB, LINES = "job.json", ".journal.jsonl"
_AGAIN = ", then run the same command again: it goes on from there"
_log = get_logger(__name__)


class Journal:
    """Files of one job, open for appending; made by `open_journal`."""

    def __init__(self, out: Path, part: Path, files: Mapping[str, BinaryIO], lines: BinaryIO, own: Claim) -> None:
        self.out, self.part = out, part
        self._files, self._lines, self._claim = files, lines, own
        self.progress: dict[str, Any] | None = None
        """What was given to the last commit; None before the first."""

    def write(self, name: str, data: bytes) -> None:
        with writing(self.part, _AGAIN):
            self._files[name].write(data)

    def commit(self, progress: dict[str, Any]) -> None:
        """Bring all that was written to the disk, and then the fact."""
        self._claim.check()
        with writing(self.part, _AGAIN):
            for file in self._files.values():
                file.flush()
                os.fdatasync(file.fileno())
            sizes = {name: file.tell() for name, file in self._files.items()}
            line = json.dumps({"sizes": sizes, "progress": progress}, separators=(",", ":"))
            self._lines.write(line.encode() + b"\n")
            self._lines.flush()
            os.fdatasync(self._lines.fileno())
        self.progress = progress

    def path(self, name: str) -> Path:
        """Where a file lies while the job runs."""
        return self.part / name

    def seal(self, finish: Callable[[Path], None]) -> None:
        """`finish(part)` adds what is made from the committed files (perhaps again, after a kill); then the folder gets
        its name.
        """
        with writing(self.part, _AGAIN):
            for file in self._files.values():
                file.flush()
            finish(self.part)
            self._claim.check()
            for file in (*self._files.values(), self._lines):
                file.close()
            sync_folder(self.part)
            self.part.rename(self.out)
            sync_folder(self.out.parent)
            _clear_scaffolding(self.out)


def is_done(out: Path | str, job: Mapping[str, Any]) -> bool:
    """Whether `out` is there, made by the same job, which is then said. DataError where it was made by another."""
    out = Path(out)
    if not out.exists():
        return False
    _same_job(out, job, "choose another folder or remove this one")
    _clear_scaffolding(out)
    _log.info("%s: already done, by the same job; nothing is made again", out)
    return True


@contextlib.contextmanager
def open_journal(
    out: Path | str, job: Mapping[str, Any], files: Sequence[str], reports: Sequence[str] = ()
) -> Iterator[Journal]:
    """Start a job, or go on where it stopped. One process at a time; others are refused. `reports` are those of the
    files that tell of the work without being work.
    """
    out = Path(out)
    part = out.with_name(f"{out.name}.part")
    with contextlib.ExitStack() as stack:
        with writing(part, _AGAIN):
            part.mkdir(parents=True, exist_ok=True)
            own = stack.enter_context(claim(part))
            last, described = _last_line(part / LINES), json.dumps(job, indent=1, sort_keys=True) + "\n"
            if last is not None and not (part / JOB).exists():  # a job that takes its description away at its end
                _log.info("%s: nothing says of what job this was; starting afresh", part)
                (part / LINES).unlink()
                last = None
            if (part / JOB).exists() and not _is_work(last, reports):
                # Of the same job without a commit there is nothing to clear: its files are cut back to 0 below.
                if last is not None or (part / JOB).read_text() != described:
                    _log.info("%s: an earlier try came to nothing; starting afresh", part)
                    _empty(part)
                    last = None
            if not (part / JOB).exists():
                write_atomically(part / JOB, described)
            _same_job(
                part,
                job,
                "it holds finished work: go on with those settings, choose another folder, or remove this one",
            )
            sizes = last["sizes"] if last else dict.fromkeys(files, 0)
            if set(sizes) != set(files):
                raise DataError(f"{part / LINES}: for other files ({', '.join(sizes)}); remove the folder {part}")
            opened = {name: stack.enter_context(_open_at(part / name, sizes[name])) for name in files}
            lines = stack.enter_context(open(part / LINES, "ab"))
        journal = Journal(out, part, opened, lines, own)
        journal.progress = last["progress"] if last else None
        try:
            yield journal
        finally:
            for file in opened.values():
                with contextlib.suppress(OSError):  # what was not committed does not count: a full disk may refuse it
                    file.close()


def _is_work(last: dict[str, Any] | None, reports: Sequence[str]) -> bool:
    """Whether the last commit had more than reports; a job that keeps its files by itself commits nothing else."""
    if last is None:
        return False
    return not last["sizes"] or any(size for name, size in last["sizes"].items() if name not in reports)


def _empty(part: Path) -> None:
    """Remove all files but claims, the journal's lines first: after a kill in between, nothing counts as committed."""
    (part / LINES).unlink(missing_ok=True)
    for entry in list(os.scandir(part)):
        if entry.is_file(follow_symlinks=False) and not entry.name.startswith(".claim-") and entry.name != JOB:
            Path(entry.path).unlink()
    (part / JOB).unlink()  # last: without it nobody would know that the rest is ours to remove


def _clear_scaffolding(folder: Path) -> None:
    for entry in list(os.scandir(folder)):
        if entry.name.startswith("."):
            Path(entry.path).unlink(missing_ok=True)


def _open_at(path: Path, size: int) -> BinaryIO:
    """For appending after the first `size` bytes; what lies beyond was never committed."""
    file = open(path, "ab")
    found = file.tell()
    if found < size:
        file.close()
        raise DataError(
            f"{path}: {found} bytes, but {size} were written; it was damaged: remove the folder {path.parent}"
        )
    file.truncate(size)
    file.seek(size)
    return file


def _last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line; a torn one behind it is cut off."""
    if not path.exists():
        return None
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    if not whole:
        return None
    try:
        return json.loads(whole.splitlines()[-1])
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); remove the folder {path.parent} to start anew") from error


def _same_job(folder: Path, job: Mapping[str, Any], remedy: str) -> None:
    path = folder / JOB
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{folder}: not the folder of such a job ({JOB} is missing); {remedy}") from error
    except (OSError, ValueError) as error:
        raise cannot_read(path, error, remedy) from error
    wanted = json.loads(json.dumps(job))  # as a file gives it back: tuples are lists there
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            name, before, now = _where(key, found.get(key), wanted.get(key))
            raise DataError(f"{folder}: begun with {name} = {_short(before)}, now {_short(now)}; {remedy}")


def _where(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The first value inside two that differ."""
    while isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
        name, before, now = f"{name}.{key}", before.get(key), now.get(key)
    return name, before, now


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else text[:77] + "..."
