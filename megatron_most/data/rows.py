"""The rows of manifests as frozen types, each made from one JSON object by a strict parser.

Speech: a span of a recording with its transcript (`Utterance`, one supervision of a Lhotse MonoCut). Text: an id and a
text. Chat: turns, each of text, units and speech parts. A parser raises RowError with a fixed reason, so that bad rows
can be counted.
Surprising: a cut of augmented speech stays that of its recording, as Lhotse reads it; what is parsed of it has the
times of the sound that will be made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_most.data.rejects import RowError

_SLACK_S = 0.002  # published times are rounded to the millisecond, start and duration each
_MOST = 1e9  # seconds; whole numbers can be too long for a float
ROLES = ("system", "user", "assistant")
AUGMENTED = "most_augmented"


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """A word and when it is spoken, in seconds from the cut's start."""

    text: str
    start: float
    duration: float


@dataclass(frozen=True, slots=True)
class Augmented:
    """Which draw of an augmentation an utterance is (augment.py)."""

    of: str
    """The id of the row it is made from."""
    copy: int
    """From 1."""
    by: str
    """The augmentation's hash, its beginning."""
    pace: float
    """How many times faster than the recording."""
    read_duration: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """A span of a recording, in seconds, and what is known of it."""

    id: str
    audio: str
    """Path below the manifest's audio root."""
    start: float
    duration: float
    channel: int
    recording: str
    sampling_rate: int
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    words: tuple[Word, ...] = ()
    augmented: Augmented | None = None
    """How its sound is changed after it is read; `duration` and `words` are then those of the changed sound."""

    @property
    def read_duration(self) -> float:
        """Of the stretch of the recording, in seconds."""
        return self.duration if self.augmented is None else self.augmented.read_duration


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRow:
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class SpeechPart:
    """Speech by the id of an utterance, whose units are looked up in unit sets."""

    utterance: str


Part = str | tuple[int, ...] | SpeechPart


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What one side says: text, units and speech in order."""

    role: str
    parts: tuple[Part, ...]
    is_trained: bool = True
    """Whether an answer is learnt. One that was cut off is context alone: it ends where nobody would end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRow:
    id: str
    turns: tuple[Turn, ...]


Row = Utterance | TextRow | ChatRow


def parse_utterance(row: dict[str, Any]) -> Utterance:
    """A MonoCut dictionary with one supervision at most and one audio source, a file."""
    if row.get("type", "MonoCut") != "MonoCut":
        raise RowError("not a MonoCut", f"type {row.get('type')!r}")
    id = _text(row, "id")
    start, duration = _number(row, "start"), _number(row, "duration")
    recording = _object(row, "recording")
    if duration <= 0:
        raise RowError("zero length", f"duration {duration:g} s")
    whole = _number(recording, "duration")
    if start < 0 or start + duration > whole + _SLACK_S:
        raise RowError("beyond the end", f"{start:g} s + {duration:g} s of a recording of {whole:g} s")
    sources = recording.get("sources")
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise RowError("malformed row", "a recording needs one audio source")
    if sources[0].get("type") != "file":
        raise RowError("source type not allowed", f"{sources[0].get('type')!r}; only files are read")
    audio = _text(sources[0], "source")
    if audio.startswith("/") or ".." in audio.split("/"):
        raise RowError("outside the data root", audio)
    sampling_rate = recording.get("sampling_rate")
    channel = row.get("channel", 0)
    if type(sampling_rate) is not int or sampling_rate < 1 or type(channel) is not int or channel < 0:
        raise RowError("malformed row", f"sampling_rate {sampling_rate!r}, channel {channel!r}")
    supervisions = row.get("supervisions") or [{}]
    if not isinstance(supervisions, list) or len(supervisions) != 1 or not isinstance(supervisions[0], dict):
        raise RowError("malformed row", "a cut needs one supervision, or none")
    said = supervisions[0]
    augmented = _augmented(row.get("custom"), duration)
    pace = augmented.pace if augmented else 1.0
    return Utterance(
        id=id,
        audio=audio,
        start=start,
        duration=duration / pace,
        channel=channel,
        recording=_text(recording, "id"),
        sampling_rate=sampling_rate,
        text=_optional_text(said, "text"),
        speaker=_optional_text(said, "speaker"),
        language=_optional_text(said, "language"),
        words=_words(said.get("alignment"), pace),
        augmented=augmented,
    )


def parse_text(row: dict[str, Any]) -> TextRow:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise RowError("missing text")
    return TextRow(id=_text(row, "id"), text=_encodable(text))


def parse_chat(row: dict[str, Any]) -> ChatRow:
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns:
        raise RowError("malformed row", "no turns")
    return ChatRow(id=_text(row, "id"), turns=tuple(_turn(turn) for turn in turns))


def chat_dict(row: ChatRow) -> dict[str, Any]:
    """The JSON object that parse_chat reads back."""
    turns = []
    for turn in row.turns:
        found: dict[str, Any] = {"role": turn.role, "parts": [_part_dict(part) for part in turn.parts]}
        turns.append(found if turn.is_trained else {**found, "trained": False})
    return {"id": row.id, "turns": turns}


def _part_dict(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    if isinstance(part, SpeechPart):
        return {"speech": part.utterance}
    return {"units": list(part)}


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        raise RowError("malformed row", f"a turn's role is one of {', '.join(ROLES)}")
    parts = turn.get("parts")
    if not isinstance(parts, list) or not parts:
        raise RowError("malformed row", "a turn without parts")
    is_trained = turn.get("trained", True)
    if not isinstance(is_trained, bool):
        raise RowError("malformed row", "trained is true or false")
    return Turn(role=turn["role"], parts=tuple(_part(part) for part in parts), is_trained=is_trained)


def _part(part: Any) -> Part:
    if isinstance(part, dict) and len(part) == 1:
        [(kind, value)] = part.items()
        if kind == "text" and isinstance(value, str):
            return _encodable(value)
        if kind == "speech" and isinstance(value, str) and value:
            return SpeechPart(_encodable(value))
        if kind == "units" and isinstance(value, list) and value and all(type(u) is int and u >= 0 for u in value):
            return tuple(value)
    raise RowError("malformed row", "a part is {text: string}, {units: list of numbers >= 0} or {speech: id}")


def _augmented(custom: Any, duration: float) -> Augmented | None:
    """Lhotse keeps what is a user's own under `custom`; others' keys are theirs."""
    if not isinstance(custom, dict) or (found := custom.get(AUGMENTED)) is None:
        return None
    if not isinstance(found, dict) or set(found) != {"of", "copy", "by", "pace"}:
        raise RowError("malformed row", f"custom.{AUGMENTED} is of, copy, by and pace")
    pace, copy = _number(found, "pace"), found["copy"]
    if type(copy) is not int or copy < 1 or not 0.1 <= pace <= 10:
        raise RowError("malformed row", f"custom.{AUGMENTED}: copy {copy!r}, pace {pace!r}")
    return Augmented(_text(found, "of"), copy, _text(found, "by"), pace, duration)


def _words(alignment: Any, pace: float) -> tuple[Word, ...]:
    words = alignment.get("word") if isinstance(alignment, dict) else None
    if not words:
        return ()
    if not isinstance(words, list):
        raise RowError("bad word times", "aligned words are a list")
    found = []
    for word in words:
        if not isinstance(word, list) or len(word) < 3 or not isinstance(word[0], str):
            raise RowError("bad word times", "an aligned word is [word, start, duration]")
        start, duration = ({"t": word[i]} for i in (1, 2))
        begins, lasts = _number(start, "t") / pace, _number(duration, "t") / pace
        found.append(Word(text=_encodable(word[0]), start=begins, duration=lasts))
    return tuple(found)


def _object(row: dict[str, Any], name: str) -> dict[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise RowError("malformed row", f"{name} is missing")
    return value


def _number(row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    if type(value) is not float and type(value) is not int or not -_MOST < value < _MOST:  # NaN fails too
        raise RowError("malformed row", f"{name} = {value!r:.40} is no number of seconds")
    return float(value)


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise RowError("malformed row", f"{name} = {value!r} is no printable text")
    return value


def _optional_text(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RowError("malformed row", f"{name} = {value!r} is no text")
    return _encodable(value)


def _encodable(text: str) -> str:
    """JSON can spell half a character (a lone surrogate), which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError("invalid UTF-8", f"half a character at {error.start}") from error
    return text
