"""Folders of noises, room responses and voices: listed once, with what tells a file from another, then read by stretch.

A listing is plain JSON values and goes into the header of what was made with it. Files that are damaged are left out
and named; a folder without a usable one is an error. What tells a file is its size and a hash of its first 64 KiB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.errors import DataError
from megatron_most.runtime import reading
from megatron_most.speech.audio import AudioError, probe, read_span

SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aiff", ".aif", ".au", ".w64", ".sph"}
_HEAD = 1 << 16
_SHORTEST_S = 0.01
_LOUDEST = 1000.0


@dataclass(frozen=True)
class SoundFileEntry:
    """One file of a folder."""

    path: str
    """Below its folder."""
    size: int
    head: str
    """Hash of its first bytes."""
    seconds: float


@dataclass(frozen=True)
class SoundFolder:
    """Files of one folder."""

    folder: str
    files: tuple[SoundFileEntry, ...]


@dataclass(frozen=True)
class SoundSet:
    """Files to choose from; empty where there are no folders."""

    folders: tuple[SoundFolder, ...] = ()

    def __len__(self) -> int:
        return sum(len(folder.files) for folder in self.folders)

    @property
    def facts(self) -> list[list[Any]]:
        """What decides the sound: not where the folders lie."""
        return [[file.path, file.size, file.head] for folder in self.folders for file in folder.files]

    def to_dict(self) -> list[dict[str, Any]]:
        return [asdict(folder) for folder in self.folders]

    @classmethod
    def from_dict(cls, values: Sequence[Mapping[str, Any]]) -> SoundSet:
        """The inverse of `to_dict`."""
        return cls(
            tuple(SoundFolder(str(f["folder"]), tuple(SoundFileEntry(**one) for one in f["files"])) for f in values)
        )

    def require_there(self, base: Path) -> None:
        """DataError where a file has gone or is another than it was. Folders count from `base`."""
        for folder in self.folders:
            for file in folder.files:
                path = base / folder.folder / file.path
                with reading(path, "put it back, or augment again without it"):
                    found = (path.stat().st_size, _head(path))
                if found != (file.size, file.head):
                    raise DataError(f"{path}: changed since it was listed; put the old file back, or augment again")

    def stretch(self, base: Path, count: int, rate: int, draw: np.random.Generator) -> np.ndarray:
        """`count` samples of some file, from any place of it; a shorter file comes round again."""
        path, file = self._choose(base, draw)
        seconds = count / rate
        room = file.seconds - seconds - 2 / rate
        at = float(draw.random())
        if room > 0:
            wave = _read(path, at * room, seconds, rate)
            return np.pad(wave, (0, max(0, count - len(wave))))[:count]  # another rate's samples may lack one
        wave = _read(path, 0.0, None, rate)
        return np.resize(np.roll(wave, int(at * len(wave))), count)

    def whole(self, base: Path, rate: int, draw: np.random.Generator) -> np.ndarray:
        """All of some file."""
        return _read(self._choose(base, draw)[0], 0.0, None, rate)

    def _choose(self, base: Path, draw: np.random.Generator) -> tuple[Path, SoundFileEntry]:
        number = int(draw.integers(len(self)))
        for folder in self.folders:
            if number < len(folder.files):
                return base / folder.folder / folder.files[number].path, folder.files[number]
            number -= len(folder.files)
        raise AssertionError("a number below the number of files")


def list_sounds(
    folders: Sequence[str | Path], field: str, *, decode: bool = False
) -> tuple[SoundSet, list[tuple[str, str]]]:
    """The usable files of folders, by name, and (path, what is wrong) of the others. `decode`: every file is decoded
    to its end, so that none fails later; else only its header and its end are looked at.
    """
    found, bad = [], []
    for folder in map(Path, folders):
        files = []
        with reading(folder, f"give a folder of sound files ({field})"):
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; give one of sound files ({field})")
            names = sorted(
                os.path.relpath(os.path.join(where, name), folder)
                for where, _, inside in os.walk(folder)
                for name in inside
                if os.path.splitext(name)[1].lower() in SUFFIXES
            )
        for name in names:
            path = folder / name
            try:
                files.append(_listed(path, name, decode))
            except AudioError as error:
                bad.append((str(path), str(error)))
        if not files:
            wrong = (
                f"none of its {len(names)} sound files can be used: {bad[-1][1]}" if names else "holds no sound file"
            )
            raise DataError(f"{folder}: {wrong}; mend it, or leave it out of {field}")
        found.append(SoundFolder(str(folder), tuple(files)))
    return SoundSet(tuple(found)), bad


def _listed(path: Path, name: str, decode: bool) -> SoundFileEntry:
    info = probe(path)
    if info.duration < _SHORTEST_S:
        raise AudioError("zero length", f"{path}: {info.duration:.4f} s")
    if decode:
        wave = read_span(path, sample_rate=info.sample_rate)
        highest = float(np.abs(wave).max(initial=0.0))
        if not 0 < highest < _LOUDEST:
            raise AudioError(
                "unreadable audio", f"{path}: {'silence' if not highest else 'no sound: samples too high'}"
            )
    return SoundFileEntry(name, path.stat().st_size, _head(path), round(info.duration, 6))


def _head(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(_HEAD)).hexdigest()[:16]


def _read(path: Path, start: float, seconds: float | None, rate: int) -> np.ndarray:
    """DataError, for the run: an utterance is not at fault."""
    try:
        wave = read_span(path, start, seconds, sample_rate=rate)
    except AudioError as error:
        raise DataError(f"{error}; take the file out, and augment again") from error
    if not len(wave) or float(np.abs(wave).max()) > _LOUDEST:
        raise DataError(f"{path}: no sound; take the file out, and augment again")
    return wave
