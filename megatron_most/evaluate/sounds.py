"""What sounds an evaluation was of: a digest of the content of each item's files.

An item whose sound has changed is asked again, and a result names all that it is of. Ranks read a share of the files
each. Digests are kept in the run's folder, so that a file is read again only where its size or time has changed.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.errors import MostError
from megatron_most.evaluate.task import Task
from megatron_most.runtime import (
    agree,
    json_lines,
    open_file,
    progress,
    reading,
    sha256_file,
    write_atomically,
    writing,
)

KEPT = ".sounds.jsonl"
_MISSING = bytes(32)


@dataclass(frozen=True)
class Sounds:
    """The digest of each item's files, "" for items that have none."""

    digests: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Of all of them; "" where no item has any."""
        return _sha256("\n".join(self.digests)) if any(self.digests) else ""


def find_sounds(task: Task, out: Path, rank: int, ranks: int) -> Sounds:
    """All ranks call it."""
    files = [task.sounds(number) for number in range(len(task))]
    paths = list(dict.fromkeys(path for of in files for path in of))
    if not paths:
        return Sounds(("",) * len(files))
    found = dict(zip(paths, _digests(paths, out / KEPT, rank, ranks), strict=True))
    return Sounds(tuple(_sha256("\n".join(f"{p.name} {found[p].hex()}" for p in of)) if of else "" for of in files))


def _digests(paths: Sequence[Path], kept: Path, rank: int, ranks: int) -> list[bytes]:
    import torch
    import torch.distributed as dist

    known: dict[str, bytes] = {}
    wrong: MostError | None = None
    try:
        known = dict(_read(kept))
    except MostError as error:
        wrong = error
    agree(wrong)
    marks = [_mark(path) for path in paths]
    digests = torch.zeros(len(paths), 32, dtype=torch.int32)
    mine = range(rank, len(paths), ranks)
    for place in progress(mine, "hash the sounds", "file") if rank == 0 else mine:
        mark = marks[place]
        if mark is not None:
            digest = known.get(mark) or _read_digest(paths[place])
            digests[place] = torch.tensor(list(digest), dtype=torch.int32)
    if dist.is_initialized():
        dist.all_reduce(digests)  # each row is of one rank
    found = [bytes(row) for row in digests.tolist()]
    if rank == 0:
        known |= {mark: of for mark, of in zip(marks, found, strict=True) if mark is not None and of != _MISSING}
        lines = (json.dumps({"file": mark, "sha256": of.hex()}) + "\n" for mark, of in sorted(known.items()))
        try:
            with writing(kept.parent):
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(kept, "".join(lines))
        except MostError as error:
            wrong = error
    agree(wrong)
    return found


def _mark(path: Path) -> str | None:
    """What changes with a file's content; None: there is no such file, which its item will be told of. Nor is a pipe
    one, which would hold whoever opens it.
    """
    try:
        about = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(about.st_mode):
        return None
    return f"{path} {about.st_size} {about.st_mtime_ns}"


def _read_digest(path: Path) -> bytes:
    try:
        return bytes.fromhex(sha256_file(path))
    except OSError:
        return _MISSING


def _read(kept: Path) -> Iterator[tuple[str, bytes]]:
    if not kept.exists():
        return
    with open_file(kept) as file, reading(kept, "remove it"):
        for _, line in json_lines(file, kept, _is_good):
            yield line["file"], bytes.fromhex(line["sha256"])


def _is_good(line: dict[str, Any]) -> bool:
    return isinstance(line.get("file"), str) and isinstance(line.get("sha256"), str) and len(line["sha256"]) == 64


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
