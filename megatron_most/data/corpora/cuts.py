"""Any list of Lhotse cuts, one JSON object a line, plain or compressed.

MonoCuts of one audio file only: mixes, paddings and multi-channel cuts are rejected, and so are sources that are no
file (Lhotse runs a "command" and fetches a "url"). Cuts are read as JSON, never by Lhotse itself. A row is what one
supervision covers: a cut of several gives several rows, and audio around a supervision, which its text does not
transcribe, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.data.corpora.audio_root import AudioRoot, Recording
from megatron_most.data.corpora.common import Corpus, Item, Reject
from megatron_most.data.corpora.cut import ROUNDING_S, AlignedWord, make_cut
from megatron_most.data.corpora.lines import read_lines
from megatron_most.data.manifest import load_json_line
from megatron_most.data.normalise import Normaliser, find_normaliser, transcript
from megatron_most.data.rejects import RowError

_MOST = 1 << 53  # whole numbers beyond it are no floats, and no lengths


@dataclass(frozen=True, kw_only=True)
class Cuts(Corpus):
    """Cuts that Lhotse wrote: spans of audio files with transcripts, speakers and, where given, word times."""

    name: str
    """Name of the corpus: the first part of every id and speaker."""
    cuts: tuple[Path, ...]
    """The lists, .jsonl or .jsonl.gz."""
    audio_root: Path
    """Folder that the audio lies in; paths in the lists count from it, or lead into it where absolute."""
    strip_prefix: str = ""
    """Taken off the front of the lists' audio paths."""
    needs_text: bool = True
    """Reject what has no transcript."""
    licence: str = "unknown"
    source: str = "Lhotse cuts"

    @property
    def corpus(self) -> str:
        return self.name

    @property
    def audio_folder(self) -> Path:
        return self.audio_root

    def rows(self) -> Iterator[Item]:
        normalise, audio = find_normaliser(self.normalisation), AudioRoot(self.audio_root, self.strip_prefix)
        for path in self.cuts:
            for line_number, line in read_lines(path):
                id = f"{path.name}:{line_number}"
                try:
                    row = load_json_line(line)
                    id = label(row, "id") or id
                    yield from self._cuts(row, audio, normalise)
                except RowError as error:
                    yield Reject.of(id, error)

    def _cuts(self, row: dict[str, Any], audio: AudioRoot, normalise: Normaliser) -> Iterator[Item]:
        """Each supervision of a cut is judged by itself: a bad one takes no other with it."""
        recording = open_cut(row, audio)
        begin, length = number(row, "start"), number(row, "duration")
        if length <= 0:
            raise RowError("zero length", f"duration {length:g} s")
        said = supervisions(row)
        whole = label(row, "id") or "?"
        for place, given in enumerate(said or [{}]):
            try:
                yield self._cut(row, recording, given, said, (begin, length), normalise)
            except RowError as error:
                of_several = str(given.get("id") or f"{whole}, supervision {place + 1}")
                yield Reject.of(whole if len(said) < 2 else of_several[:200], error)

    def _cut(
        self,
        row: dict[str, Any],
        recording: Recording,
        given: dict[str, Any],
        said: list[dict[str, Any]],
        span: tuple[float, float],
        normalise: Normaliser,
    ) -> dict[str, Any]:
        begin, length = span
        text = given.get("text")
        start = number(given, "start") if said else 0.0
        duration = number(given, "duration") if said else length
        if start < -ROUNDING_S or start + duration > length + ROUNDING_S:
            raise RowError("beyond the end", f"a supervision at {start:g} s + {duration:g} s of {length:g} s")
        if abs(start) < ROUNDING_S and abs(duration - length) < ROUNDING_S:
            start, duration = 0.0, length  # it is the whole cut
        id = label(row if len(said) < 2 else given, "id")
        if not id:
            raise RowError("malformed row", "no id")
        speaker, language = label(given, "speaker"), self.language or given.get("language")
        return make_cut(
            id=f"{self.name}-{id}",
            recording=recording,
            start=round(begin + start, ndigits=8) if start else begin,
            duration=duration,
            channel=row.get("channel", 0),
            text=transcript(text, normalise) if text or self.needs_text else None,
            speaker=None if speaker is None else f"{self.name}-{speaker}",
            language=language,
            words=aligned_words(given, start, normalise),
        )


def open_cut(row: dict[str, Any], audio: AudioRoot) -> Recording:
    """The recording of a MonoCut, its file found. RowError for any other kind of cut or source."""
    if row.get("type", "MonoCut") != "MonoCut":
        raise RowError("not a MonoCut", f"type {row.get('type')!r}")
    recording = row.get("recording")
    if not isinstance(recording, dict):
        raise RowError("malformed row", "a cut without a recording")
    sources = recording.get("sources")
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise RowError("malformed row", "a recording needs one audio source")
    if sources[0].get("type") != "file":
        raise RowError("source type not allowed", f"{sources[0].get('type')!r}; only files are read")
    if recording.get("transforms") or row.get("transforms"):
        raise RowError("transformed audio", "the recording is not the file as it is")
    source, id = sources[0].get("source"), recording.get("id")
    channels = sources[0].get("channels") or [0]
    if not isinstance(source, str) or not isinstance(id, str) or not isinstance(channels, list):
        raise RowError("malformed row", f"recording id {id!r}, source {source!r}, channels {channels!r}")
    rate, num_samples, duration = (recording.get(key) for key in ("sampling_rate", "num_samples", "duration"))
    if type(rate) is not int or type(num_samples) is not int or not (0 < rate < _MOST and 0 < num_samples < _MOST):
        raise RowError("malformed row", f"sampling_rate {rate!r:.40}, num_samples {num_samples!r:.40}")
    seconds = number(recording, "duration") if duration is not None else num_samples / rate
    if not abs(seconds - num_samples / rate) <= ROUNDING_S:
        raise RowError("malformed row", f"{num_samples} samples at {rate} Hz are not {seconds:g} s")
    return Recording(id, audio.find(source), rate, num_samples, seconds, len(channels))


def supervisions(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The supervisions of a cut, none or several."""
    found = row.get("supervisions") or []
    if not isinstance(found, list) or not all(isinstance(said, dict) for said in found):
        raise RowError("malformed row", "supervisions are a list of objects")
    return found


def number(row: dict[str, Any], name: str) -> float:
    """A finite number of a row; JSON can spell others."""
    value = row.get(name)
    try:
        if type(value) in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
            return float(value)  # type: ignore[arg-type]
    except OverflowError:
        value = "hundreds of digits"
    raise RowError("malformed row", f"{name} = {value!r} is no number")


def label(row: dict[str, Any], name: str) -> str | None:
    """An id or a speaker: text, or a whole number as text; None where there is none."""
    value = row.get(name)
    if type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError("invalid UTF-8", f"{name}, character {error.start}") from error
        return value
    if value is None:
        return None
    if type(value) is int and abs(value) < 1 << 63:
        return str(value)
    raise RowError("malformed row", f"{name} is a {type(value).__name__}")


def aligned_words(said: dict[str, Any], offset: float, normalise: Normaliser) -> list[AlignedWord]:
    """Word times of a supervision, from `offset` seconds on, without those of silences, which have no word."""
    alignment = said.get("alignment")
    items = alignment.get("word") if isinstance(alignment, dict) else None
    if items and not isinstance(items, list):
        raise RowError("bad word times", "aligned words are a list")
    words = []
    for item in items or ():
        if not isinstance(item, list) or len(item) < 3 or not isinstance(item[0], str):
            raise RowError("bad word times", "an aligned word is [word, start, duration]")
        times = {"start": item[1], "duration": item[2]}
        if word := normalise(item[0]).strip():
            words.append((word, round(number(times, "start") - offset, ndigits=8), number(times, "duration")))
    return words
