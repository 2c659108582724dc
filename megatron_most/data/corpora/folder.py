"""A folder of recordings, each with its transcript in a text file of the same name beside it: a/b.wav and a/b.txt.

Folders inside are searched in order of name; links to folders are not followed. What has no partner is a reject.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.data.corpora.audio_root import AudioRoot
from megatron_most.data.corpora.common import Corpus, Item, Reject
from megatron_most.data.corpora.cut import make_cut
from megatron_most.data.corpora.lines import walk
from megatron_most.data.normalise import Normaliser, find_normaliser, transcript
from megatron_most.data.rejects import RowError

_LONGEST = 1 << 20  # bytes of a transcript


@dataclass(frozen=True, kw_only=True)
class Folder(Corpus):
    """A folder of audio files with a .txt each."""

    name: str
    """Name of the corpus: the first part of every id and speaker."""
    root: Path
    """The folder; folders inside are searched too."""
    suffixes: tuple[str, ...] = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
    """Endings of audio files."""
    speaker_depth: int = 0
    """How many folders down a speaker's folder lies: 1 where root/<speaker>/…; 0 where speakers are unknown."""
    needs_text: bool = True
    """Reject what has no transcript."""
    licence: str = "unknown"
    source: str = "folder of recordings"

    @property
    def corpus(self) -> str:
        return self.name

    @property
    def audio_folder(self) -> Path:
        return self.root

    def rows(self) -> Iterator[Item]:
        normalise, audio = find_normaliser(self.normalisation), AudioRoot(self.root)
        for path in walk(self.root):
            if isinstance(path, Reject):
                yield path
                continue
            relative = path.relative_to(self.root)
            id = f"{self.name}-{relative.with_suffix('').as_posix()}"
            suffix = path.suffix.lower()
            if suffix == ".txt" and not any(path.with_suffix(s).exists() for s in _cases(self.suffixes)):
                yield Reject(id, "missing audio", f"{relative}: a transcript without audio")
            elif suffix in self.suffixes:
                try:
                    yield self._cut(id, relative, audio, normalise)
                except RowError as error:
                    yield Reject.of(id, error)

    def _cut(self, id: str, relative: Path, audio: AudioRoot, normalise: Normaliser) -> dict[str, Any]:
        found = audio.find(relative.as_posix())
        text = _read(relative.with_suffix(".txt"), audio)
        depth = self.speaker_depth
        speaker = relative.parts[depth - 1] if 0 < depth < len(relative.parts) else None
        return make_cut(
            id=id,
            recording=audio.probe(found),
            text=transcript(text, normalise) if text or self.needs_text else None,
            speaker=None if speaker is None else f"{self.name}-{speaker}",
            language=self.language,
        )


def _cases(suffixes: tuple[str, ...]) -> Iterator[str]:
    for suffix in suffixes:
        yield suffix
        yield suffix.upper()


def _read(relative: Path, audio: AudioRoot) -> str | None:
    try:
        path = audio.root / audio.find(relative.as_posix())
        with open(path, "rb") as file:
            data = file.read(_LONGEST + 1)
    except RowError as error:
        if error.reason in ("missing file", "empty file"):  # the transcript's own
            return None
        raise
    except OSError as error:
        raise RowError("missing text", f"{relative}: {error.strerror}") from error
    if len(data) > _LONGEST:
        raise RowError("malformed row", f"{relative}: too long for a transcript")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise RowError("invalid UTF-8", f"{relative}: byte {error.start}") from error
