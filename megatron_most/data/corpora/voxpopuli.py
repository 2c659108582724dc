"""VoxPopuli's transcribed speech, in either published layout; nothing is fetched.

raw: raw_audios/<original or language>/<year>/<session>_….ogg with asr_<language>.tsv(.gz): each row is the span from
start_time to end_time of a long session, as Lhotse's recipe has it. segments: transcribed_data/<language>/
asr_<split>.tsv with one .ogg a row, which the corpus's own tools cut, leaving pauses out. Both give the same ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_most.data.corpora.audio_root import AudioRoot, Recording
from megatron_most.data.corpora.common import Corpus, Item, Reject
from megatron_most.data.corpora.cut import make_cut
from megatron_most.data.corpora.lines import read_table, walk
from megatron_most.data.normalise import Normaliser, find_normaliser, transcript
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError


@dataclass(frozen=True, kw_only=True)
class VoxPopuli(Corpus):
    """One split of one language of VoxPopuli's transcribed speech."""

    root: Path
    """The folder that raw_audios/ or transcribed_data/ lies in."""
    language: str = field()
    """Language code: en, de, …"""
    split: str = "train"
    """train, dev or test."""
    layout: Literal["auto", "raw", "segments"] = "auto"
    """raw: spans of whole sessions; segments: files already cut; auto: segments where their list is there."""
    tsv: Path | None = None
    """The list of the raw layout, asr_<language>.tsv or .tsv.gz; looked for in the root and in transcribed_data/."""
    text: Literal["normalised", "original"] = "normalised"
    """normalised: lower case without punctuation; original: as printed, empty for some rows."""
    licence: str = "CC0-1.0 (transcripts); European Parliament recordings"
    source: str = "VoxPopuli (facebookresearch/voxpopuli), European Parliament event recordings 2009-2020"

    @property
    def corpus(self) -> str:
        return "voxpopuli"

    @property
    def audio_folder(self) -> Path:
        return self.root

    def rows(self) -> Iterator[Item]:
        normalise, audio = find_normaliser(self.normalisation), AudioRoot(self.root)
        segments = self.root / "transcribed_data" / self.language / f"asr_{self.split}.tsv"
        is_cut = self.layout == "segments" or self.layout == "auto" and segments.is_file()
        yield from self._segments(segments, audio, normalise) if is_cut else self._sessions(audio, normalise)

    def _segments(self, path: Path, audio: AudioRoot, normalise: Normaliser) -> Iterator[Item]:
        text = "normalized_text" if self.text == "normalised" else "raw_text"
        for row in read_table(path, ("id", text, "speaker_id")):
            if isinstance(row, Reject):
                yield row
                continue
            _, columns = row
            name = columns["id"]
            try:
                found = audio.find(f"transcribed_data/{self.language}/{name[:4]}/{name}.ogg")
                file = audio.probe(found)
                yield make_cut(
                    id=self._id(name),
                    recording=Recording(
                        name, found, file.sampling_rate, file.num_samples, file.duration, file.num_channels
                    ),
                    text=transcript(columns[text], normalise),
                    speaker=_speaker(columns),
                    language=self.language,
                )
            except RowError as error:
                yield Reject.of(self._id(name), error)

    def _sessions(self, audio: AudioRoot, normalise: Normaliser) -> Iterator[Item]:
        text = "normed_text" if self.text == "normalised" else "original_text"
        needed = ("session_id", "id_", text, "speaker_id", "split", "start_time", "end_time")
        files = dict[str, str]()
        for item in self._recordings():
            if isinstance(item, Reject):
                yield item
            else:
                files.setdefault(*item)
        for row in read_table(self._tsv(), needed, delimiter="|", quoted=True):
            if isinstance(row, Reject):
                yield row
                continue
            _, columns = row
            if columns["split"] != self.split:
                continue
            session = columns["session_id"]
            name = f"{session}-{columns['id_']}"
            try:
                if session not in files:
                    raise RowError("missing file", f"no recording of session {session}")
                file = audio.probe(audio.find(files[session]))
                start = _seconds(columns, "start_time")
                yield make_cut(
                    id=self._id(name),
                    recording=Recording(
                        session, file.path, file.sampling_rate, file.num_samples, file.duration, file.num_channels
                    ),
                    start=round(start, ndigits=8),
                    duration=round(_seconds(columns, "end_time") - start, ndigits=8),
                    text=transcript(columns[text], normalise),
                    speaker=_speaker(columns),
                    language=self.language,
                )
            except RowError as error:
                yield Reject.of(self._id(name), error)

    def _recordings(self) -> Iterator[tuple[str, str] | Reject]:
        """(session, path below the root); a session's own sound before the interpreters' channel of the language."""
        folders = [self.root / "raw_audios" / name for name in ("original", self.language)]
        there = [folder for folder in folders if folder.is_dir()]
        if not there:
            raise DataError(f"{folders[0]}, {folders[1]}: neither folder is there; check the root, or the layout")
        for folder in there:
            for path in walk(folder):
                if isinstance(path, Reject):
                    yield path
                elif path.suffix == ".ogg":
                    session = path.stem.removesuffix(f"_{self.language}").removesuffix("_original")
                    yield session, path.relative_to(self.root).as_posix()

    def _tsv(self) -> Path:
        if self.tsv is not None:
            return self.tsv
        folders = (self.root, self.root / "transcribed_data" / self.language)
        paths = [folder / f"asr_{self.language}{end}" for folder in folders for end in (".tsv", ".tsv.gz")]
        for path in paths:
            if path.is_file():
                return path
        raise DataError(f"{paths[1]}: missing, and not in {paths[2].parent} either; fetch the list and give --tsv")

    def _id(self, name: str) -> str:
        return f"voxpopuli-{self.language}-{name}"


def _speaker(columns: dict[str, str]) -> str | None:
    speaker = columns["speaker_id"]
    return f"voxpopuli-{speaker}" if speaker and speaker != "None" else None


def _seconds(columns: dict[str, str], name: str) -> float:
    try:
        return float(columns[name])
    except ValueError as error:
        raise RowError("malformed row", f"{name} = {columns[name]!r} is no number") from error
