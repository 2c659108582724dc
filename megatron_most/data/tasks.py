"""Documents of every task, from manifest rows and units: `make_documents`, batch by batch.

A row becomes a draft (texts and finished audio ids), then one call of the tokenizer serves all drafts of the batch. A
document's id is "task/row id". A row that cannot be used becomes a Rejection with a fixed reason; what is wrong with
the whole run (units of another codec, the wrong tokenizer) raises.
Training: asr, tts and chats learn the responses only, the others every token. Text is tokenised apart on either side of
a prompt's end, so that generation, which sees the prompt alone, sees the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from megatron_most.data.document import (
    NO_SPEECH,
    AudioSpan,
    DocumentRuns,
    Draft,
    Frames,
    Ids,
    Piece,
    Run,
    Speech,
    audio_ids,
    frame_ids,
    merge_runs,
)
from megatron_most.data.interleave import SpeechRow, TaskOptions, chains, interleave_segments, interleave_words
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import ChatRow, Row, SpeechPart, TextRow, Turn, Utterance
from megatron_most.data.templates import Content, Templates, fill, join
from megatron_most.data.tokenizer import TextTokenizer, check_text_ids
from megatron_most.errors import DataError
from megatron_most.vocab import AUDIO, TEXT, TokenMap

if TYPE_CHECKING:
    from megatron_most.speech import UnitSequence

SPEECH_TASKS = ("asr", "tts", "audio-lm", "interleaved")
TEXT_TASKS = ("text-lm",)
INSTRUCT_TASKS = ("speech-instruct", "text-instruct")
FRAME_TASKS = ("asr", "speech-instruct")
"""In these speech may be given as continuous frames: it is heard there. What a model says is made of units."""
TASKS = ("asr", "tts", "text-lm", "audio-lm", "interleaved", "speech-instruct", "text-instruct")

UnitsOf = Callable[[str], "UnitSequence | None"] | Mapping[str, "UnitSequence"]


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """What rows are turned into documents with."""

    token_map: TokenMap
    tokenizer: TextTokenizer
    templates: Templates
    units_of: UnitsOf = field(default_factory=dict)
    """Units by utterance id, for the speech parts of chats."""
    heard_of: UnitsOf | None = None
    """Of what users say, where that is augmented; None: as all."""
    options: TaskOptions = field(default_factory=TaskOptions)
    frames_tag: int = AUDIO
    """The tag of continuous frames."""
    spans_of: Callable[[str], AudioSpan] | None = None
    """What users say in chats as continuous frames, by utterance id; None: as units."""


@dataclass(frozen=True)
class Rejection:
    """A row of which no document came, and why."""

    id: str
    reason: str
    detail: str = ""


AnyRow = TypeVar("AnyRow")
FrameRow = tuple[Utterance, AudioSpan]
Made = tuple[list[DocumentRuns], list[Rejection]]


def make_documents(task: str, rows: Sequence[Row | SpeechRow | FrameRow], context: TaskContext) -> Made:
    """The documents of a batch in the rows' order, and the rows rejected.

    Rows of speech tasks are pairs (Utterance, UnitSequence), or for frames (Utterance, AudioSpan). Interleaving by
    segments sees the rows of this batch only: give it whole recordings.
    """
    if task not in TASKS:
        raise DataError(f"task {task!r}: not known; use one of {', '.join(TASKS)}")
    if task in SPEECH_TASKS:
        if heard := [row for row in rows if isinstance(row, tuple) and isinstance(row[1], AudioSpan)]:
            return _heard(task, heard, rows, context)
        speech = [row for row in rows if isinstance(row, tuple) and not isinstance(row[1], AudioSpan)]
        _all_fit(task, speech, rows, "utterances with their units")
        if task == "audio-lm":
            return _audio_lm(speech, context)
        return _finish(*_draft_speech(task, speech, context), context)
    if task in TEXT_TASKS:
        texts = [row for row in rows if isinstance(row, TextRow)]
        _all_fit(task, texts, rows, "texts")
        return _text_lm(texts, context)
    chats = [row for row in rows if isinstance(row, ChatRow)]
    _all_fit(task, chats, rows, "chats")
    return _finish(*_draft_each(chats, lambda row: (row.id,), lambda row: _chat(task, row, context)), context)


def _heard(task: str, heard: Sequence[Any], rows: Sequence[object], context: TaskContext) -> Made:
    """Documents of speech tasks in which the speech is frames."""
    _all_fit(task, heard, rows, "utterances that all are frames")
    if task not in FRAME_TASKS:
        raise DataError(f"task {task}: its speech is learnt, and frames cannot be; build it of units")
    return _finish(*_draft_each(heard, lambda row: (row[0].id,), lambda row: _asr_or_tts(task, row, context)), context)


def _all_fit(task: str, fitting: Sequence[object], rows: Sequence[object], wanted: str) -> None:
    if len(fitting) != len(rows):
        raise DataError(f"task {task}: made of {wanted}; give it a manifest (and a unit set) of that kind")


def _draft_each(
    rows: Sequence[AnyRow], ids_of: Callable[[AnyRow], tuple[str, ...]], draft: Callable[[AnyRow], Draft]
) -> tuple[list[Draft], list[Rejection]]:
    drafts, rejections = [], []
    for row in rows:
        try:
            drafts.append(draft(row))
        except RowError as error:
            rejections += _rejected(ids_of(row), error)
        except DataError as error:
            raise DataError(f"{ids_of(row)[0]}: {error}") from error
    return drafts, rejections


def _rejected(ids: Sequence[str], error: RowError) -> list[Rejection]:
    return [Rejection(id, error.reason, error.detail) for id in ids]


def _draft_speech(task: str, rows: Sequence[SpeechRow], context: TaskContext) -> tuple[list[Draft], list[Rejection]]:
    tokens, options = context.token_map, context.options

    def ids_of(row: SpeechRow) -> tuple[str, ...]:
        return (row[0].id,)

    if task in ("asr", "tts"):
        return _draft_each(rows, ids_of, lambda row: _asr_or_tts(task, row, context))
    if options.by == "words":
        return _draft_each(rows, ids_of, lambda row: interleave_words(row, tokens, options))
    complete: list[SpeechRow] = []
    rejections = []
    for row in rows:
        if (row[0].text or "").strip() and len(row[1].units):
            complete.append(row)
        else:
            rejections.append(Rejection(row[0].id, "no units" if (row[0].text or "").strip() else "missing text"))
    drafts, more = _draft_each(
        list(chains(complete, options)),
        lambda chain: tuple(utterance.id for utterance, _ in chain),
        lambda chain: interleave_segments(chain, tokens, options),
    )
    return drafts, rejections + more


def _asr_or_tts(task: str, row: SpeechRow | FrameRow, context: TaskContext) -> Draft:
    utterance, units = row
    text = (utterance.text or "").strip()
    if not text:
        raise RowError("missing text")
    id = f"{task}/{utterance.id}"
    ask = context.templates.instruction(task, id) + "\n\n"
    audio: Ids | Frames
    if isinstance(units, AudioSpan):
        audio = frame_ids(units, context.frames_tag, context.token_map)
    else:
        audio = audio_ids(units.units, context.token_map)
    given: Content = (ask, audio) if task == "asr" else (ask, text)
    answer: Content = (text,) if task == "asr" else (audio,)
    begin = fill(context.templates.begin, (), context.token_map, False)
    pieces = tuple(exchange(begin, given, answer, context))
    return Draft(id, (utterance.id,), pieces, Speech.lasting(utterance.duration))


def exchange(
    before: Sequence[str | Piece], given: Content, answer: Content, context: TaskContext, is_trained: bool = True
) -> list[Piece]:
    """A prompt, with what stands before it, and its response; only the response is trained on, if that is."""
    templates, tokens = context.templates, context.token_map
    prompt = join([*before, *fill(templates.prompt, given, tokens, False)], False)
    return prompt + join(fill(templates.response, answer, tokens, is_trained), is_trained)


def _chat(task: str, row: ChatRow, context: TaskContext) -> Draft:
    templates, tokens = context.templates, context.token_map
    before = fill(templates.begin, (), tokens, False)
    turns = row.turns
    if turns and turns[0].role == "system":
        if templates.system is None:
            raise RowError("no place for a system turn", f"templates {templates.name}")
        before += fill(templates.system, content_of(turns[0], context)[0], tokens, False)  # which has no speech
        turns = turns[1:]
    for number, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[number % 2]:
            raise RowError("roles do not alternate", f"turn {number + 1} is the {turn.role}'s")
    if not turns or turns[-1].role != "assistant":
        raise RowError("does not end with the assistant")
    if not any(turn.is_trained for turn in turns[1::2]):
        raise RowError("nothing to learn", "every answer was cut off")
    pieces: list[Piece] = []
    speech = NO_SPEECH
    for user, assistant in zip(turns[::2], turns[1::2], strict=True):
        (given, heard), (answer, said) = content_of(user, context), content_of(assistant, context)
        pieces += exchange(before, given, answer, context, assistant.is_trained)
        speech += heard + said
        before = []
    has_speech = any(not isinstance(part, str) for turn in row.turns for part in turn.parts)
    if has_speech != (task == "speech-instruct"):
        raise RowError("speech in a text task" if has_speech else "no speech")
    return Draft(f"{task}/{row.id}", (row.id,), tuple(pieces), speech)


def content_of(turn: Turn, context: TaskContext) -> tuple[Content, Speech]:
    """What a turn says, units as ids between their marks; RowError where that is nothing."""
    content: list[str | Ids | Frames] = []
    speech = NO_SPEECH
    hears = context.spans_of if turn.role == "user" else None
    for part in turn.parts:
        if isinstance(part, str):
            content.append(part)
        elif isinstance(part, SpeechPart) and hears is not None:
            span = hears(part.utterance)
            content.append(frame_ids(span, context.frames_tag, context.token_map))
            speech += Speech.lasting(span.duration)
        elif hears is not None:
            raise RowError("units without sound", "the user's speech is heard as frames; name utterances")
        elif isinstance(part, SpeechPart):
            units_of = context.units_of if turn.role != "user" else context.heard_of or context.units_of
            found = units_of.get(part.utterance) if isinstance(units_of, Mapping) else units_of(part.utterance)
            if found is None:
                raise RowError("no units", f"of utterance {part.utterance!r}")
            content.append(audio_ids(found.units, context.token_map))
            speech += Speech.lasting(int(found.durations.sum(dtype=np.int64)) * found.frame_s)
        else:
            content.append(audio_ids(part, context.token_map))
            speech += Speech(untimed_units=len(part))
        if turn.role == "system" and not isinstance(part, str):
            raise RowError("speech in a system turn")
    if all(isinstance(part, str) and not part.strip() for part in content):
        raise RowError("missing text", f"in a turn of the {turn.role}")
    return content, speech


def _text_lm(rows: Sequence[TextRow], context: TaskContext) -> Made:
    bos, eos = (np.array([id], np.int32) for id in (context.token_map.bos_id, context.token_map.eos_id))
    documents, rejections = [], []
    for row, ids in zip(rows, _encode([row.text for row in rows], context), strict=True):
        if isinstance(ids, RowError):
            rejections += _rejected((row.id,), ids)
        elif not len(ids):
            rejections.append(Rejection(row.id, "missing text"))
        else:
            run = Run(np.concatenate((bos, ids, eos)), TEXT, True)
            documents.append(DocumentRuns(f"text-lm/{row.id}", (run,)))
    return documents, rejections


def _audio_lm(rows: Sequence[SpeechRow], context: TaskContext) -> Made:
    tokens = context.token_map
    first, last = (Run(np.array([id], np.int32), TEXT, True) for id in (tokens.bos_id, tokens.eos_id))
    documents, rejections = [], []
    for utterance, units in rows:
        try:
            run = Run(audio_ids(units.units, tokens), AUDIO, True)
        except RowError as error:
            rejections += _rejected((utterance.id,), error)
        except DataError as error:
            raise DataError(f"{utterance.id}: {error}") from error
        else:
            runs, speech = (first, run, last), Speech.lasting(utterance.duration)
            documents.append(DocumentRuns(f"audio-lm/{utterance.id}", runs, speech))
    return documents, rejections


def _finish(drafts: Sequence[Draft], rejections: list[Rejection], context: TaskContext) -> Made:
    """Tokenise the texts of all drafts at once, each distinct text once."""
    contents = (piece.content for draft in drafts for piece in draft.pieces)
    texts = list(dict.fromkeys(content for content in contents if isinstance(content, str)))
    ids = dict(zip(texts, _encode(texts, context), strict=True))
    documents = []
    for draft in drafts:
        runs, spans, place = [], [], 0
        for piece in draft.pieces:
            found = ids[piece.content] if isinstance(piece.content, str) else piece.content
            if isinstance(found, RowError):
                rejections += _rejected(draft.rows, found)
                break
            runs.append(Run(found, piece.tag, piece.is_trained))
            if piece.span is not None:
                spans.append((place, piece.span))
            place += len(found)
        else:
            documents.append(DocumentRuns(draft.id, merge_runs(runs), draft.speech, tuple(spans)))
    return documents, rejections


def _encode(texts: Sequence[str], context: TaskContext) -> list[Ids | RowError]:
    """The ids of each text, or why it has none. A batch with a bad text is done again one by one."""
    try:
        return list(checked_ids(texts, context))
    except RowError:
        found: list[Ids | RowError] = []
        for text in texts:
            try:
                found += checked_ids([text], context)
            except RowError as error:
                found.append(error)
        return found


def checked_ids(texts: Sequence[str], context: TaskContext) -> list[Ids]:
    """The ids of each text. RowError for a text that holds special tokens, DataError for the wrong tokenizer."""
    ids = context.tokenizer.encode_batch(texts) if texts else []
    if ids:
        check_text_ids(np.concatenate(ids), context.token_map)
    return ids
