"""Interleaved speech-text documents: spans of one utterance, or of neighbouring ones, in text and units by turns.

It ties the modalities: what is said in one continues in the other. By words: an utterance with word times is cut
between words; a run of merged units belongs to the span that holds the middle of its frames, so no unit comes twice. By
segments: neighbouring utterances of one recording take turns. Which modality comes first and how long spans are depends
on (seed, id) alone. A text that follows speech begins with a space, as in the middle of a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from megatron_most.data.document import NO_SPEECH, Draft, Ids, Piece, Speech, audio_ids
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import Utterance, Word
from megatron_most.data.templates import draw
from megatron_most.errors import ConfigError
from megatron_most.vocab import AUDIO, TEXT, TokenMap

if TYPE_CHECKING:
    from megatron_most.speech import UnitSequence

SpeechRow = tuple[Utterance, "UnitSequence"]
_SLACK_S = 0.05  # aligners round word times, and neighbouring words may share a frame
_UNITS_SLACK_S = 0.5  # an encoder's window loses some frames of a cut


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """How documents of the task "interleaved" are cut; other tasks have no options."""

    by: Literal["words", "segments"] = "words"
    """words: inside utterances, at word times. segments: whole utterances of a recording take turns."""
    seed: int = 0
    text_words: tuple[int, int] = (5, 15)
    """words: the shortest and the longest text span. What is left after it joins an utterance's last span."""
    audio_words: tuple[int, int] = (5, 15)
    text_segments: tuple[int, int] = (1, 1)
    """segments: utterances in a text span, at least and at most."""
    audio_segments: tuple[int, int] = (1, 1)
    max_gap_s: float = 2.0
    """segments: a longer pause between two utterances ends the document."""
    max_seconds: float = 120.0
    """segments: from the first utterance's start to the last one's end."""
    leftovers: Literal["reject", "keep"] = "reject"
    """What is too short to hold both modalities: reject it, or keep it as a document of one."""

    def __post_init__(self) -> None:
        for name in ("text_words", "audio_words", "text_segments", "audio_segments"):
            span = getattr(self, name)
            if len(span) != 2 or not 1 <= span[0] <= span[1]:
                raise ConfigError(name, span, "not a shortest and a longest span", "give two counts, like 5 15")
        for name in ("max_gap_s", "max_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(name, getattr(self, name), "not a length of time", "give seconds, 0 or more")
        for name, known in (("by", ("words", "segments")), ("leftovers", ("reject", "keep"))):
            if getattr(self, name) not in known:
                raise ConfigError(name, getattr(self, name), "no such choice", f"use {' or '.join(known)}")


@dataclass(frozen=True)
class Span:
    """Neighbouring words or segments in one modality: items first..last-1."""

    is_audio: bool
    first: int
    last: int


def cut_spans(
    count: int, text: tuple[int, int], audio: tuple[int, int], options: TaskOptions, id: str
) -> tuple[Span, ...]:
    """Alternating spans that partition `count` items, with lengths drawn from (seed, id).

    The first span leaves room for a second one where `count` allows; a rest too short for a span joins the one before.
    """
    is_audio = draw(2, options.seed, id, "order") == 1
    spans: list[Span] = []
    at = 0
    while at < count:
        (low, high), (next_low, _) = (audio, text) if is_audio else (text, audio)
        length = low + draw(high - low + 1, options.seed, id, len(spans))
        left = count - at
        if not spans and left >= low + next_low:
            length = min(length, left - next_low)
        elif left - length < next_low:
            length = left
        spans.append(Span(is_audio, at, at + length))
        at, is_audio = at + length, not is_audio
    return tuple(spans)


def interleave_words(row: SpeechRow, tokens: TokenMap, options: TaskOptions) -> Draft:
    """One utterance, cut between words."""
    utterance, units = row
    words = checked_words(utterance, units)
    written = _as_written(utterance, words)
    spans = cut_spans(len(words), options.text_words, options.audio_words, options, utterance.id)
    cuts = unit_cuts(words, spans, units)
    parts: list[str | Ids] = []
    speech = NO_SPEECH
    for span, first, last in zip(spans, cuts[:-1], cuts[1:], strict=True):
        if not span.is_audio:
            parts.append(" ".join(written[span.first : span.last]))
        elif first == last:
            raise RowError("no units", f"between words {span.first + 1} and {span.last}")
        else:
            parts.append(audio_ids(units.units[first:last], tokens))
            speech += Speech.lasting(float(units.durations[first:last].sum(dtype=np.int64)) * units.frame_s)
    return _draft((utterance.id,), parts, speech, tokens, options)


def checked_words(utterance: Utterance, units: UnitSequence) -> tuple[Word, ...]:
    """The words that are not silence. RowError where their times, or the units' length, are not this utterance's."""
    words = tuple(word for word in utterance.words if word.text.strip())
    if not words:
        raise RowError("no word times", "--interleave.by segments needs none")
    end = 0.0
    for number, word in enumerate(words, 1):
        until = word.start + word.duration
        if word.duration < 0 or word.start < end - _SLACK_S or until > utterance.duration + _SLACK_S:
            raise RowError("bad word times", f"word {number}: {word.start:g} s to {until:g} s, after {end:g} s")
        end = max(end, until)
    seconds = int(units.durations.sum(dtype=np.int64)) * units.frame_s
    if abs(seconds - utterance.duration) > _UNITS_SLACK_S:
        raise RowError("units of another length", f"{seconds:.2f} s, the cut is {utterance.duration:.2f} s")
    return words


def unit_cuts(words: Sequence[Word], spans: Sequence[Span], units: UnitSequence) -> list[int]:
    """Where each span's units begin, and the end of the last: halfway between the words on either side."""
    borders: list[float] = [
        (words[span.first - 1].start + words[span.first - 1].duration + words[span.first].start) / 2
        for span in spans[1:]
    ]
    middles = (np.cumsum(units.durations, dtype=np.int64) - units.durations / 2) * units.frame_s
    inner: list[int] = np.searchsorted(middles, np.maximum.accumulate(borders)).tolist() if borders else []
    return [0, *inner, len(units.units)]


def _as_written(utterance: Utterance, words: Sequence[Word]) -> list[str]:
    """The words as the transcript has them, with its case and marks, where it has the same words; else as aligned."""
    written = (utterance.text or "").split()
    aligned = [word.text.strip() for word in words]
    return written if list(map(_letters, written)) == list(map(_letters, aligned)) else aligned


def _letters(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter.isalnum())


def chains(rows: Iterable[SpeechRow], options: TaskOptions) -> Iterator[list[SpeechRow]]:
    """Rows of one recording and channel, one after the other with short pauses, up to `max_seconds`."""
    chain: list[SpeechRow] = []
    for row in rows:
        if chain and not _continues(chain, row[0], options):
            yield chain
            chain = []
        chain.append(row)
    if chain:
        yield chain


def _continues(chain: Sequence[SpeechRow], here: Utterance, options: TaskOptions) -> bool:
    first, before = chain[0][0], chain[-1][0]
    if (here.recording, here.channel, here.audio) != (before.recording, before.channel, before.audio):
        return False
    gap = here.start - (before.start + before.duration)
    return -_SLACK_S <= gap <= options.max_gap_s and here.start + here.duration - first.start <= options.max_seconds


def interleave_segments(chain: Sequence[SpeechRow], tokens: TokenMap, options: TaskOptions) -> Draft:
    """Neighbouring utterances that take turns; named after the first. Each needs a text and units."""
    id = chain[0][0].id
    spans = cut_spans(len(chain), options.text_segments, options.audio_segments, options, id)
    parts: list[str | Ids] = []
    speech = NO_SPEECH
    for span in spans:
        rows = chain[span.first : span.last]
        if span.is_audio:
            parts.append(audio_ids(np.concatenate([units.units for _, units in rows]), tokens))
            speech = sum((Speech.lasting(utterance.duration) for utterance, _ in rows), speech)
        else:
            parts.append(" ".join((utterance.text or "").strip() for utterance, _ in rows))
    return _draft(tuple(utterance.id for utterance, _ in chain), parts, speech, tokens, options)


def _draft(
    rows: tuple[str, ...], parts: Sequence[str | Ids], speech: Speech, tokens: TokenMap, options: TaskOptions
) -> Draft:
    """BOS, the spans, EOS; everything is trained on."""
    if len(parts) < 2 and options.leftovers == "reject":
        raise RowError("one modality only", "too short for two spans")
    pieces = [Piece(np.array([tokens.bos_id], np.int32), TEXT, True)]
    for number, part in enumerate(parts):
        if isinstance(part, str):
            pieces.append(Piece(" " + part if number else part, TEXT, True))
        else:
            pieces.append(Piece(part, AUDIO, True))
    pieces.append(Piece(np.array([tokens.eos_id], np.int32), TEXT, True))
    return Draft(f"interleaved/{rows[0]}", rows, tuple(pieces), speech)
