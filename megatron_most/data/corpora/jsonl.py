"""A corpus of one's own as JSON lines: one object an utterance, in the fields that speech toolkits share.

    {"audio": "a.wav", "text": "hello", "id": "…", "start": 1.5, "duration": 2, "channel": 0, "speaker": "…",
     "language": "en", "words": [["hello", 0.1, 0.4]]}

Only the audio (also spelled audio_filepath or path) and, unless told otherwise, the text are needed. The header of each
audio file is read, once a file, so that spans beyond its end are found here and not days later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.data.corpora.audio_root import AudioRoot
from megatron_most.data.corpora.common import Corpus, Item, Reject
from megatron_most.data.corpora.cut import AlignedWord, make_cut
from megatron_most.data.corpora.cuts import label, number
from megatron_most.data.corpora.lines import read_lines
from megatron_most.data.manifest import load_json_line
from megatron_most.data.normalise import Normaliser, find_normaliser, transcript
from megatron_most.data.rejects import RowError

_AUDIO = ("audio", "audio_filepath", "path")
_START = ("start", "offset")


@dataclass(frozen=True, kw_only=True)
class JsonLines(Corpus):
    """Utterances as JSON lines."""

    name: str
    """Name of the corpus: the first part of every id and speaker."""
    files: tuple[Path, ...]
    """The lists, .jsonl or .jsonl.gz."""
    audio_root: Path
    """Folder that the audio lies in; paths in the lists count from it, or lead into it where absolute."""
    strip_prefix: str = ""
    """Taken off the front of the lists' audio paths."""
    needs_text: bool = True
    """Reject what has no transcript."""
    licence: str = "unknown"
    source: str = "JSON lines"

    @property
    def corpus(self) -> str:
        return self.name

    @property
    def audio_folder(self) -> Path:
        return self.audio_root

    def rows(self) -> Iterator[Item]:
        normalise, audio = find_normaliser(self.normalisation), AudioRoot(self.audio_root, self.strip_prefix)
        for path in self.files:
            for line_number, line in read_lines(path):
                id = f"{self.name}-{path.name.split('.')[0]}-{line_number}"  # for rows without one
                try:
                    row = load_json_line(line)
                    if given := label(row, "id"):
                        id = f"{self.name}-{given}"
                    yield self._cut(id, row, audio, normalise)
                except RowError as error:
                    yield Reject.of(id, error)

    def _cut(self, id: str, row: dict[str, Any], audio: AudioRoot, normalise: Normaliser) -> dict[str, Any]:
        source, text, speaker = _first(row, _AUDIO), row.get("text"), label(row, "speaker")
        if not isinstance(source, str):
            raise RowError("malformed row", f"no audio: none of {', '.join(_AUDIO)} is a path")
        start = next((number(row, name) for name in _START if row.get(name) is not None), 0.0)
        return make_cut(
            id=id,
            recording=audio.probe(audio.find(source)),
            start=start,
            duration=None if row.get("duration") is None else number(row, "duration"),
            channel=row.get("channel", 0),
            text=transcript(text, normalise) if text or self.needs_text else None,
            speaker=None if speaker is None else f"{self.name}-{speaker}",
            language=self.language or row.get("language"),
            words=[_word(word, normalise) for word in _words(row)],
        )


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _words(row: dict[str, Any]) -> list[Any]:
    words = row.get("words") or []
    if not isinstance(words, list):
        raise RowError("bad word times", "words are a list")
    return words


def _word(word: Any, normalise: Normaliser) -> AlignedWord:
    """[word, start, duration], or an object with word or text, start, and duration or end."""
    if isinstance(word, list) and len(word) == 3:
        word = dict(zip(("word", "start", "duration"), word, strict=True))
    text = _first(word, ("word", "text")) if isinstance(word, dict) else None
    if not isinstance(text, str):
        raise RowError("bad word times", "a word is [word, start, duration] or {word, start, end}")
    start = number(word, "start")
    duration = number(word, "duration") if "duration" in word else round(number(word, "end") - start, ndigits=8)
    return normalise(text), start, duration
