"""The files of a run's datasets: one that was changed since the run last started is proven by its hash.

A dataset is known by the hashes in its description, and reading all of it at every start would take too long. So a
checkpoint keeps the size and time of each file, and what differs is read: a copy elsewhere is as good as the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from megatron_most.config import RunConfig, TaskConfig
from megatron_most.data import MadeWith, load_info, makers_of
from megatron_most.errors import DataError
from megatron_most.runtime import agree, get_logger, sha256_file

Stamps = dict[str, list[int]]
"""task, number of the dataset and file -> (bytes, nanoseconds of its time)."""
_log = get_logger(__name__)


def made_of(config: RunConfig) -> MadeWith:
    """What made the data that training reads."""
    tasks = [getattr(config.data, field.name) for field in fields(config.data)]
    learnt = [task for task in tasks if isinstance(task, TaskConfig) and task.weight]
    return makers_of(folder for task in learnt for folder in (*task.train, *task.real))


def stamp(config: RunConfig) -> Stamps:
    """Of every file that training reads, as it is now."""
    return {name: _stamp_of(path) for name, path, _ in _files(config)}


def prove_changed(config: RunConfig, stored: Mapping[str, list[int]], rank: int, ranks: int) -> None:
    """DataError, on all ranks alike, where a file that differs from `stored` is not what its dataset says. All ranks
    call it; each reads its share.
    """
    wrong: Exception | None = None
    try:
        for name, path, wanted in list(_files(config))[rank::ranks]:
            if _stamp_of(path) == stored.get(name):
                continue
            _log.info("%s: not of the size and time that it had when this run last started; reading it", path)
            if (found := sha256_file(path)) != wanted:
                raise DataError(
                    f"{path}: changed: its sha256 is {found[:16]}..., its dataset says {wanted[:16]}...; put back what "
                    "the run was begun with, or begin another"
                )
    except (DataError, OSError) as error:
        wrong = error
    agree(wrong)


def _stamp_of(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _files(config: RunConfig) -> Iterator[tuple[str, Path, str]]:
    """(name, path, sha256 by its dataset)"""
    for field in fields(config.data):
        task = getattr(config.data, field.name)
        for number, folder in enumerate((*task.train, *task.real) if isinstance(task, TaskConfig) else ()):
            for name, (_, sha256) in sorted(load_info(folder).files.items()):
                yield f"{field.name}/{number}/{name}", Path(folder) / name, sha256
