"""Unit set: the units of a manifest's utterances, with their run lengths, in a few flat files.

`units.u16` and `durations.u32` (frames of each run) are laid end to end in the manifest's order; `ends.i64` says where
each utterance ends, `rows.i64` which row of the manifest it is, `ids.txt` its id. A big corpus is a folder of shards;
`open_units` takes either. The codec's identity stands in `units.json`: units of two codecs, or of one codec computed in
two precisions, never mix.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.data.seal import SEAL, check_seal, sealed
from megatron_most.errors import DataError
from megatron_most.runtime import JOB, cannot_read, open_file, read_file, reading, require_file, sha256_file
from megatron_most.speech import CodecIdentity, UnitSequence

FORMAT = "most-units-2"
HEADER, IDS, REJECTS = "units.json", "ids.txt", "rejects.jsonl"
ARRAYS = {"units.u16": np.uint16, "durations.u32": np.uint32, "ends.i64": np.int64, "rows.i64": np.int64}
FILES = (*ARRAYS, IDS, REJECTS)
_REMEDY = "extract the units again"
HASHED = (*FILES, JOB)


@dataclass(frozen=True, kw_only=True)
class UnitHeader:
    """What one shard of a unit set holds."""

    codec: CodecIdentity
    manifest_sha256: str
    manifest_rows: int
    corpus: str
    split: str
    shard: tuple[int, int]
    """(i, n): the i-th of n, from 0."""
    first_row: int
    last_row: int
    """Rows first_row..last_row-1 of the manifest were read."""
    utterances: int
    units: int
    seconds: float
    rejects: dict[str, int] = field(default_factory=dict)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """name -> (bytes, sha256)"""
    augmentation: str | None = None
    """The hash of what changed the sound before it was heard; None: nothing. Then the file has no such key."""
    format: str = FORMAT

    def to_json(self) -> str:
        values = {**asdict(self), "codec": self.codec.to_dict()}
        if self.augmentation is None:
            del values["augmentation"]
        return sealed(values)


class UnitShard:
    """One opened shard; arrays are mapped, not read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.header = folder, _read_header(folder / HEADER)
        for name, (size, _) in self.header.files.items():
            found = require_file(folder / name, remedy=_REMEDY).stat().st_size
            if found != size:
                raise DataError(f"{folder / name}: {found} bytes where units.json says {size}; {_REMEDY}")
        self._units, self._durations, ends, rows = (_map(folder / name, kind) for name, kind in ARRAYS.items())
        self.rows: np.ndarray = rows
        self._ends: np.ndarray = ends
        count = self.header.utterances
        whole = len(ends) == len(rows) == count and len(self._units) == len(self._durations) == self.header.units
        if not whole or (count and int(ends[-1]) != self.header.units):
            raise DataError(f"{folder}: its files do not fit each other; {_REMEDY}")

    def __len__(self) -> int:
        return self.header.utterances

    def sequence(self, index: int) -> UnitSequence:
        here = slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))
        return UnitSequence(units=self._units[here], durations=self._durations[here], frame_s=self.header.codec.frame_s)

    def ids(self) -> Iterator[str]:
        with open_file(self.folder / IDS, remedy=_REMEDY) as file:
            yield from (line[:-1].decode() for line in file)

    def verify(self) -> None:
        """Raise where a byte is not what it was."""
        for name, (_, wanted) in self.header.files.items():
            with reading(self.folder / name, _REMEDY):
                found = sha256_file(self.folder / name)
            if found != wanted:
                raise DataError(
                    f"{self.folder / name}: damaged (its sha256 is not that of units.json); extract it again"
                )


class UnitSet:
    """All shards of one manifest's units, by row or by utterance id."""

    def __init__(self, path: Path, shards: list[UnitShard]) -> None:
        self.path, self.shards = path, shards
        self.codec = shards[0].header.codec
        self.manifest_sha256 = shards[0].header.manifest_sha256
        count = shards[0].header.shard[1]
        for shard in shards:
            head = shard.header
            self.codec.require_same(head.codec, str(shards[0].folder), str(shard.folder))
            if head.manifest_sha256 != self.manifest_sha256 or head.shard[1] != count:
                raise DataError(f"{shard.folder}: of another manifest or another number of shards than its neighbours")
        missing = sorted(set(range(count)) - {shard.header.shard[0] for shard in shards})
        if missing or len(shards) != count:
            raise DataError(f"{path}: shard {missing[0] if missing else '?'} of {count} is missing; extract it first")

    def find(self, row: int) -> UnitSequence | None:
        """The units of a manifest row; None where the row was rejected."""
        for shard in self.shards:
            if shard.header.first_row <= row < shard.header.last_row:
                at = int(np.searchsorted(shard.rows, row))
                return shard.sequence(at) if at < len(shard) and int(shard.rows[at]) == row else None
        return None

    @property
    def augmentation(self) -> str | None:
        """The hash of what changed the sound; None: nothing."""
        return self.shards[0].header.augmentation

    def by_id(self, id: str) -> UnitSequence | None:
        """The units of an utterance."""
        if (place := self._places.get(id)) is None:
            return None
        shard, index = place
        return self.shards[shard].sequence(index)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        return {id: (s, i) for s, shard in enumerate(self.shards) for i, id in enumerate(shard.ids())}

    @property
    def seconds(self) -> float:
        return sum(shard.header.seconds for shard in self.shards)


def open_units(path: Path | str) -> UnitSet:
    """A unit set of one shard, or a folder of all its shards."""
    path = Path(path)
    try:
        names = set(os.listdir(path))
    except FileNotFoundError:
        names = set()
    except OSError as error:
        raise cannot_read(path, error, "give the folder of a unit set") from error
    if HEADER in names:
        return UnitSet(path, [UnitShard(path)])
    folders = [path / name for name in sorted(names) if "-of-" in name and not name.endswith(".part")]
    if not folders:
        unfinished = path.with_name(path.name + ".part").exists() or any(name.endswith(".part") for name in names)
        hint = "it is unfinished: run `units` again" if unfinished else "make one with `units`"
        raise DataError(f"{path}: no unit set here ({HEADER} is missing); {hint}")
    return UnitSet(path, sorted((UnitShard(folder) for folder in folders), key=lambda s: s.header.shard))


def _map(path: Path, kind: Any) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, kind)
    return np.memmap(path, kind, "r")


def _read_header(path: Path) -> UnitHeader:
    data = read_file(path, remedy=_REMEDY)
    try:
        found = json.loads(data)
        if found.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        check_seal(data, path, "extract the units again")
        del found[SEAL]
        if set(found["files"]) != set(HASHED):
            raise ValueError(f"files are {', '.join(found['files'])}")
        found["codec"] = CodecIdentity.from_dict(found["codec"])
        found["shard"] = tuple(found["shard"])
        found["files"] = {name: tuple(entry) for name, entry in found["files"].items()}
        return UnitHeader(**found)
    except (DataError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as a unit set's header ({error}); {_REMEDY}") from error
