"""LibriSpeech as unpacked: <part>/<speaker>/<chapter>/*.flac with one *.trans.txt a chapter.

Lines are read by Lhotse's own functions, which also read the word times published beside it (*.alignment.txt). Where
Lhotse's recipe stops at the first bad line or passes over a missing file, each is a reject here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.data.corpora.audio_root import AudioRoot, Recording
from megatron_most.data.corpora.common import Corpus, Item, Reject
from megatron_most.data.corpora.cut import make_cut
from megatron_most.data.corpora.lines import read_lines, walk
from megatron_most.data.normalise import Normaliser, find_normaliser, transcript
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError

_ID = re.compile(r"[0-9]+-[0-9]+-[0-9]+")  # it becomes a path
_TRANSCRIPTS = ".trans.txt"


@dataclass(frozen=True, kw_only=True)
class LibriSpeech(Corpus):
    """LibriSpeech or Mini LibriSpeech, with word times where they are."""

    root: Path
    """The folder with the parts in it, usually named LibriSpeech."""
    parts: tuple[str, ...]
    """Parts to read, such as train-clean-100; several become one manifest."""
    alignments: Path | None = None
    """Folder of word times, laid out like the root; the root itself where they were unpacked into it."""
    split: str = ""
    """Name of the part, for the header; the parts' names if empty."""
    licence: str = "CC-BY-4.0"
    source: str = "LibriSpeech (openslr.org/12), read by LibriVox volunteers"
    normalisation: str = "none"
    """What is done to the text, which is published in capitals without punctuation: none, lower, …"""
    language: str | None = "en"

    @property
    def corpus(self) -> str:
        return "librispeech"

    @property
    def split_name(self) -> str:
        return self.split or "+".join(self.parts)

    @property
    def audio_folder(self) -> Path:
        return self.root

    def rows(self) -> Iterator[Item]:
        normalise, audio = find_normaliser(self.normalisation), AudioRoot(self.root)
        for part in self.parts:
            folder = self.root / part
            if not folder.is_dir():
                found = sorted(path.name for path in self.root.iterdir() if path.is_dir())
                raise DataError(f"{folder}: no such part; {self.root} holds {', '.join(found)[:400] or 'no folder'}")
            for path in walk(folder):
                if isinstance(path, Reject):
                    yield path
                elif path.name.endswith(_TRANSCRIPTS):
                    yield from self._chapter(path, folder, audio, normalise)

    def _chapter(self, path: Path, part: Path, audio: AudioRoot, normalise: Normaliser) -> Iterator[Item]:
        from lhotse.recipes.librispeech import parse_alignments

        times: dict[str, Any] = {}
        name = path.name.removesuffix(_TRANSCRIPTS) + ".alignment.txt"
        aligned = (self.alignments or self.root) / path.parent.relative_to(self.root) / name
        if aligned.is_file():
            try:
                times = parse_alignments(aligned)
            except (OSError, ValueError) as error:  # its utterances are still good, without word times
                yield Reject(f"librispeech-{name}", "bad word times", audio.below(str(error))[:200])
        for number, line in read_lines(path):
            id = f"{path.name}:{number}"
            try:
                try:
                    said = line.decode()
                except UnicodeDecodeError as error:
                    raise RowError("invalid UTF-8", f"byte {error.start} of the line") from error
                id = said.split(maxsplit=1)[0]
                yield self._cut(said, part, audio, normalise, times)
            except RowError as error:
                yield Reject.of(f"librispeech-{id}", error)

    def _cut(
        self, line: str, part: Path, audio: AudioRoot, normalise: Normaliser, times: dict[str, Any]
    ) -> dict[str, Any]:
        from lhotse.audio.utils import AudioLoadingError
        from lhotse.recipes.librispeech import parse_utterance

        id, *said = line.split(maxsplit=1)
        if not _ID.fullmatch(id):
            raise RowError("malformed row", f"{id[:80]!r} is not speaker-chapter-number")
        if not said:
            raise RowError("missing text")
        speaker, chapter, _ = id.split("-")
        found = audio.find(f"{part.name}/{speaker}/{chapter}/{id}.flac")
        try:
            parsed = parse_utterance(part, line, times)
        except (OSError, ValueError, RuntimeError, AudioLoadingError) as error:  # what its audio backends raise
            raise RowError("unreadable audio", audio.below(str(error))[:200]) from error
        if parsed is None:
            raise RowError("missing file", found)
        heard, supervision = parsed
        if not heard.num_samples:
            raise RowError("empty file", f"{found}: no samples")
        words = [(normalise(w.symbol).strip(), w.start, w.duration) for w in times.get(id, ())]
        return make_cut(
            id=f"librispeech-{id}",
            recording=Recording(id, found, heard.sampling_rate, heard.num_samples, heard.duration, heard.num_channels),
            text=transcript(supervision.text, normalise),
            speaker=f"librivox-{supervision.speaker}",
            language=self.language,
            words=[word for word in words if word[0]],  # the times of silences have no word
        )
