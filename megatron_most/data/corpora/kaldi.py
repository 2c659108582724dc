"""A Kaldi data folder: wav.scp and text, with segments, utt2spk and utt2lang where they are.

Entries of wav.scp that are commands (with a pipe) or places in an archive are rejected, each with its utterances, and
never run. Tables are kept on disk while they are joined, so their size and order do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_most.data.corpora.audio_root import AudioRoot, Recording
from megatron_most.data.corpora.common import Corpus, Item, Reject
from megatron_most.data.corpora.cut import make_cut
from megatron_most.data.corpora.lines import read_lines
from megatron_most.data.corpora.table import DiskTable
from megatron_most.data.normalise import Normaliser, find_normaliser, transcript
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError

_ARCHIVE = re.compile(r".*\.ark:[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Kaldi(Corpus):
    """A Kaldi data folder whose wav.scp names plain files."""

    name: str
    """Name of the corpus: the first part of every id and speaker."""
    folder: Path
    """The folder with wav.scp in it."""
    audio_root: Path | None = None
    """Folder that the audio lies in; paths in wav.scp count from it, or lead into it where absolute. None: `folder`."""
    needs_text: bool = True
    """Reject what has no transcript."""
    licence: str = "unknown"
    source: str = "Kaldi data folder"

    @property
    def corpus(self) -> str:
        return self.name

    @property
    def audio_folder(self) -> Path:
        return self.audio_root or self.folder

    def rows(self) -> Iterator[Item]:
        normalise, audio = find_normaliser(self.normalisation), AudioRoot(self.audio_folder)
        if not (self.folder / "wav.scp").is_file():
            raise DataError(f"{self.folder}: no wav.scp; give the folder of a Kaldi data set")
        segments = self.folder / "segments"
        names = ["text", "utt2spk", "utt2lang"] + ["wav.scp"] * segments.is_file()
        tables = {name: DiskTable(name) for name in names}
        for name, table in tables.items():
            if (self.folder / name).is_file():
                yield from _fill(table, self.folder / name)
        for item in _pairs(segments if segments.is_file() else self.folder / "wav.scp"):
            if isinstance(item, Reject):
                yield item
                continue
            key, value = item
            try:
                text = tables["text"].take(key)
                yield self._cut(key, value, text, tables, audio, normalise)
            except RowError as error:
                yield Reject.of(f"{self.name}-{key}", error)
        for key in tables["text"].left():
            yield Reject(f"{self.name}-{key}", "missing audio", "a transcript, but no such utterance")

    def _cut(
        self,
        key: str,
        value: str,
        text: str | None,
        tables: dict[str, DiskTable],
        audio: AudioRoot,
        normalise: Normaliser,
    ) -> dict[str, Any]:
        start, end, source, recording_id = 0.0, None, value, key
        if "wav.scp" in tables:
            recording_id, start, end = _segment(value)
            found = tables["wav.scp"].get(recording_id)
            if found is None:
                raise RowError("missing file", f"recording {recording_id} is not in wav.scp")
            source = found
        recording = _open(recording_id, source, audio)
        speaker = tables["utt2spk"].get(key)
        return make_cut(
            id=f"{self.name}-{key}",
            recording=recording,
            start=start,
            duration=None if end is None else round(end - start, ndigits=8),
            text=transcript(text, normalise) if text or self.needs_text else None,
            speaker=None if speaker is None else f"{self.name}-{speaker}",
            language=self.language or tables["utt2lang"].get(key),
        )


def _open(id: str, source: str, audio: AudioRoot) -> Recording:
    if "|" in source:
        raise RowError("source type not allowed", "wav.scp has a command; only files are read")
    if _ARCHIVE.fullmatch(source):
        raise RowError("source type not allowed", "wav.scp has a place in an archive; only files are read")
    return replace(audio.probe(audio.find(source)), id=id)


def _segment(value: str) -> tuple[str, float, float | None]:
    """Recording, start and end; an end of -1 is the recording's."""
    try:
        recording, start, end = value.split()
        return recording, float(start), None if float(end) == -1 else float(end)
    except ValueError as error:
        raise RowError("malformed row", f"segments: {value[:80]!r} is not recording, start, end") from error


def _pairs(path: Path) -> Iterator[tuple[str, str] | Reject]:
    """(first word, rest) of each line."""
    for number, line in read_lines(path):
        try:
            key, *rest = line.decode().strip().split(maxsplit=1)
        except UnicodeDecodeError as error:
            yield Reject(f"{path.name}:{number}", "invalid UTF-8", f"byte {error.start} of the line")
            continue
        yield key, rest[0] if rest else ""


def _fill(table: DiskTable, path: Path) -> Iterator[Reject]:
    rejects = []

    def good() -> Iterator[tuple[str, str]]:
        for item in _pairs(path):
            if isinstance(item, Reject):
                rejects.append(item)
            else:
                yield item

    table.fill(good())
    yield from rejects
