"""Common Voice as unpacked: <version>/<language>/<split>.tsv with clips/, any language and any release.

Splits are taken as given, and a speaker of the dev or test list is kept out of every other list of that language.
Ids are made of clip names, never of client_id: one speaker has many clips. Durations come from clip_durations.tsv where
the release has it, for most clips do not state their length and would have to be decoded; the sample rate, which
differs between clips, is read from the first frame of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_most.data.corpora.audio_root import AudioRoot, Recording
from megatron_most.data.corpora.common import Corpus, Item, Reject
from megatron_most.data.corpora.cut import make_cut
from megatron_most.data.corpora.lines import read_table
from megatron_most.data.corpora.mpeg import frame_rate
from megatron_most.data.corpora.table import DiskTable
from megatron_most.data.normalise import Normaliser, find_normaliser, transcript
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError

_HELD_OUT = ("dev", "test")
_DURATION = "duration[ms]"


@dataclass(frozen=True, kw_only=True)
class CommonVoice(Corpus):
    """One list of one language of Common Voice."""

    root: Path
    """A release (cv-corpus-…), a folder of one release, or the folder the release's languages lie in."""
    language: str = field()
    """Language code as the release spells it: en, de, zh-CN, …"""
    split: str = "train"
    """The list to read: train, dev, test, validated, other or invalidated."""
    speaker_disjoint: bool = True
    """Reject speakers who are in the dev or test list too; those lists themselves are read whole."""
    licence: str = "CC0-1.0"
    source: str = "Mozilla Common Voice"
    normalisation: str = "commonvoice"
    """What is done to the text; commonvoice puts the lists' double quotes right."""

    @property
    def corpus(self) -> str:
        return "commonvoice"

    @property
    def audio_folder(self) -> Path:
        return self.root

    def rows(self) -> Iterator[Item]:
        normalise, audio = find_normaliser(self.normalisation), AudioRoot(self.root)
        folder = self._folder()
        held_out = self._held_out(folder)
        durations = self._durations(folder)
        for row in read_table(self._list(folder, self.split), ("client_id", "path", "sentence")):
            if isinstance(row, Reject):
                yield row
                continue
            _, columns = row
            stem = Path(columns["path"]).stem
            id = f"commonvoice-{self.language}-{stem}"
            try:
                if columns["client_id"] in held_out:
                    raise RowError("speaker in an evaluation split", held_out[columns["client_id"]])
                yield self._cut(id, stem, columns, folder, audio, durations, normalise)
            except RowError as error:
                yield Reject.of(id, error)

    def _cut(
        self,
        id: str,
        stem: str,
        columns: dict[str, str],
        folder: Path,
        audio: AudioRoot,
        durations: DiskTable | None,
        normalise: Normaliser,
    ) -> dict[str, Any]:
        text = transcript(columns["sentence"], normalise)
        path = audio.find(f"{folder.relative_to(self.root).as_posix()}/clips/{columns['path']}")
        recording = _listed(stem, self.root / path, path, durations.get(columns["path"])) if durations else None
        if recording is None:
            probed = audio.probe(path)
            recording = Recording(
                stem, path, probed.sampling_rate, probed.num_samples, probed.duration, probed.num_channels
            )
        speaker = columns["client_id"]
        return make_cut(
            id=id,
            recording=recording,
            text=text,
            speaker=f"commonvoice-{speaker}" if speaker else None,
            language=self.language,
        )

    def _folder(self) -> Path:
        """The language's folder, in the root or in the one release there."""
        if (self.root / self.language).is_dir():
            return self.root / self.language
        releases = sorted(path.parent for path in self.root.glob(f"cv-corpus-*/{self.language}") if path.is_dir())
        if len(releases) == 1:
            return releases[0] / self.language
        if releases:
            names = ", ".join(path.name for path in releases)
            raise DataError(f"{self.root}: {self.language} is in several releases ({names}); give one of them as root")
        found = sorted(
            {path.parent.name for path in (*self.root.glob("*/*.tsv"), *self.root.glob("cv-corpus-*/*/*.tsv"))}
        )
        listed = ", ".join(found)[:400] or "none"
        raise DataError(f"{self.root}: no language {self.language!r}; the languages found are {listed}")

    def _list(self, folder: Path, split: str) -> Path:
        path = folder / f"{split}.tsv"
        if not path.is_file():
            found = ", ".join(sorted(file.stem for file in folder.glob("*.tsv")))
            raise DataError(f"{path}: no such list; those found are {found or 'none'}")
        return path

    def _held_out(self, folder: Path) -> dict[str, str]:
        """The list each speaker of an evaluation list is in."""
        speakers: dict[str, str] = {}
        if not self.speaker_disjoint or self.split in _HELD_OUT:
            return speakers
        for split in _HELD_OUT:
            path = folder / f"{split}.tsv"
            if not path.is_file():
                remedy = "it tells whose voices to keep out; give --no-speaker-disjoint if the release has none"
                raise DataError(f"{path}: missing; {remedy}")
            for row in read_table(path, ("client_id",)):
                if not isinstance(row, Reject) and row[1]["client_id"]:
                    speakers.setdefault(row[1]["client_id"], split)
        return speakers

    def _durations(self, folder: Path) -> DiskTable | None:
        path = folder / "clip_durations.tsv"
        if not path.is_file():
            return None
        table = DiskTable(path.name)
        rows = (row[1] for row in read_table(path, ("clip", _DURATION)) if not isinstance(row, Reject))
        table.fill((row["clip"], row[_DURATION]) for row in rows)
        return table


def _listed(id: str, file: Path, path: str, milliseconds: str | None) -> Recording | None:
    """The recording as clip_durations.tsv has it; None where that has no such clip, or the clip is no MPEG audio."""
    if milliseconds is None:
        return None
    if not milliseconds.isascii() or not milliseconds.isdigit():
        raise RowError("malformed row", f"clip_durations.tsv: {milliseconds!r} is no number of milliseconds")
    rate = frame_rate(file)
    if rate is None:
        return None
    seconds = int(milliseconds) / 1000
    return Recording(id, path, rate, round(seconds * rate), seconds)
