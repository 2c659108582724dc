"""Talker: text and waves to prompts, answers to text and units.

Prompts are laid out by the templates that the model has learnt (data/asking.py). Several are answered together.
"""

# T frames, F width of a frame

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from megatron_most.converse.choices import Task
from megatron_most.converse.ears import Ears, Heard, hears_frames
from megatron_most.converse.models import Opened, templates_of, tokenizer_of
from megatron_most.data import Wave
from megatron_most.data.asking import Tokens, ask, begin, instruct
from megatron_most.data.document import AudioSpan
from megatron_most.data.rows import Part, SpeechPart, Turn
from megatron_most.data.tasks import TaskContext
from megatron_most.errors import DataError
from megatron_most.generate import Answer, IsCancelled, OnToken, Prompt, Settings, check_prompt, generate
from megatron_most.speech import AudioError, Vocoder, probe, read_span
from megatron_most.vocab import AUDIO

MOST_S = 600.0
"""Of a sound file."""
SaidPart = str | Heard
"""A text, units, or a sound as frames."""


@dataclass(frozen=True)
class Said:
    """An answer, told apart."""

    answer: Answer
    text: str
    """Of all its text, without special tokens."""
    units: list[list[int]] = field(default_factory=list)
    """Of each audio span."""


class Talker:
    """A model with its tokenizer, and with ears (open_ears) where it shall hear."""

    def __init__(
        self,
        opened: Opened,
        *,
        tokenizer: Path | str | None = None,
        templates: str | None = None,
        trust_templates: bool = False,
        ears: Ears | None = None,
    ) -> None:
        self.opened, self.ears = opened, ears
        self.hears_frames = hears_frames(opened)
        self.tokenizer = tokenizer_of(opened, tokenizer)
        tag = opened.model.frames_tag
        self.context = TaskContext(
            token_map=opened.model.tokens, tokenizer=self.tokenizer,
            templates=templates_of(opened, templates, may_differ=trust_templates),
            frames_tag=AUDIO if tag is None else tag,
        )  # fmt: skip

    def hear(self, path: Path | str) -> Heard:
        """What the model is given of a sound file."""
        if self.ears is None:
            raise DataError(f"{path}: a codec is needed to hear it; give the data's with --codec")
        try:
            seconds = probe(path, most_s=MOST_S).duration
            if seconds > MOST_S:  # before hours of it are decoded
                raise DataError(f"{path}: {seconds:.0f} s; at most {MOST_S:g} s are heard at once; cut it")
            wave = read_span(path, sample_rate=self.ears.sample_rate)
        except AudioError as error:
            raise DataError(f"{path}: cannot be heard: {error}") from error
        return self.hear_wave(wave, str(path))

    def hear_wave(self, wave: np.ndarray, name: str) -> Heard:
        """Of mono float32 at the ears' rate. DataError where it is too short, too long or no sound."""
        assert self.ears is not None, "hear() has looked"
        if len(wave) < self.ears.min_samples:
            seconds = self.ears.min_samples / self.ears.sample_rate
            raise DataError(f"{name}: {len(wave)} samples; the codec needs {seconds:g} s at least")
        if not np.isfinite(wave).all():
            raise DataError(f"{name}: holds samples that are not finite")
        heard = self.ears(wave)
        most = self.opened.model.max_positions
        if len(heard) + 2 > most:
            seconds, what = len(wave) / self.ears.sample_rate, "units" if isinstance(heard, tuple) else "frames"
            raise DataError(f"{name}: {seconds:.0f} s are {len(heard)} {what}, the model has {most} positions; cut it")
        return heard

    def prompt(self, task: Task, text: str | None = None, heard: Heard | None = None) -> Prompt:
        """Of one request. asr takes what was heard, tts and plain take text, chat takes either or both."""
        is_heard = heard is not None and len(heard) > 0
        if task == "plain":
            if is_heard:
                raise DataError("task plain goes on with a text; use asr or chat for speech")
            return self._prompt(begin(text or "", self.context))
        if task != "chat":
            if (is_heard, bool(text)) != ((True, False) if task == "asr" else (False, True)):
                raise DataError(f"task {task} takes {'speech and no text' if task == 'asr' else 'text and no speech'}")
            given, context, frames = self._written([text or "" if heard is None else heard])
            return self._prompt(instruct(task, given[0], context), frames)
        parts = [*([text] if text else []), *([heard] if is_heard and heard is not None else [])]
        if not parts:
            raise DataError("nothing was said; give text, speech or both")
        return self.chat([("user", parts)])

    def chat(self, turns: Sequence[tuple[str, Sequence[SaidPart]]]) -> Prompt:
        """Of a conversation that ends with the user: roles, and what each has said."""
        written, context, frames = self._written([part for _, parts in turns for part in parts])
        rest = iter(written)
        asked = [Turn(role=role, parts=tuple(next(rest) for _ in parts)) for role, parts in turns]
        return self._prompt(ask(asked, context), frames)

    def _written(self, parts: Sequence[SaidPart]) -> tuple[list[Part], TaskContext, list[np.ndarray]]:
        """Parts as prompts are made of them, the context that knows the frames among them, and these."""
        frames = [part for part in parts if isinstance(part, np.ndarray)]
        names = iter(range(len(frames)))
        written = [SpeechPart(str(next(names))) if isinstance(part, np.ndarray) else part for part in parts]
        return written, with_frames(self.context, frames) if self.hears_frames else self.context, frames

    def _prompt(self, tokens: Tokens, frames: Sequence[np.ndarray] = ()) -> Prompt:
        """DataError where it leaves no room for an answer: among others answered with it, it would end them too."""
        prompt, model = laid_out(tokens, self.context.token_map.begin_wave_id, frames), self.opened.model
        check_prompt(prompt, model.tokens.tag_table(), model.max_positions, "what was said")
        return prompt

    def answer(
        self,
        prompts: Sequence[Prompt],
        settings: Settings | Sequence[Settings],
        on_token: OnToken | None = None,
        is_cancelled: IsCancelled | None = None,
    ) -> list[Said]:
        """All of them together, see generate()."""
        return [self.tell(answer) for answer in generate(self.opened.model, prompts, settings, on_token, is_cancelled)]

    def tell(self, answer: Answer) -> Said:
        """An answer as text and units."""
        tokens = self.context.token_map
        marks = {tokens.bos_id, tokens.eos_id, tokens.pad_id}
        text, spans = [], []
        for is_audio, group in groupby(zip(answer.ids, answer.tags, strict=True), lambda pair: pair[1] == AUDIO):
            ids = [id for id, _ in group]
            if not is_audio:
                text.append(self.tokenizer.decode([id for id in ids if id not in marks]))
                continue
            for is_unit, run in groupby(ids, lambda id: id in tokens.unit_ids):
                if is_unit:
                    spans.append([tokens.unit_of_id(id) for id in run])
        return Said(answer, "".join(text).strip(), spans)

    def speak(self, said: Said, voice: Vocoder, speaker: int = 0) -> np.ndarray:
        """All audio spans of an answer as one wave. DataError where it has none, or the voice is of another codec."""
        self.opened.made_with.require_codec(voice.codec_hash, "the vocoder", str(self.opened.folder))
        if not said.units:
            raise DataError(
                "the answer holds no speech, so there is nothing to write; use --task tts, or mode audio-only"
            )
        return np.concatenate([voice.speak(units, speaker=speaker) for units in said.units])


def with_frames(context: TaskContext, frames: Sequence[np.ndarray]) -> TaskContext:
    """In which a SpeechPart of the name "0" stands for the first of the frames, and so on."""

    def span(name: str) -> AudioSpan:
        return AudioSpan(audio=name, size=0, start=0.0, duration=0.0, frames=len(frames[int(name)]))

    return replace(context, spans_of=span)


def laid_out(tokens: Tokens, begin_wave_id: int, frames: Sequence[np.ndarray] = ()) -> Prompt:
    """A prompt, with its frames [T, F] in their order. Begin wave ids stand for frames and for nothing else."""
    ids, tags = tokens
    places_N = np.flatnonzero(ids == begin_wave_id)
    assert len(places_N) == sum(map(len, frames)), f"{len(places_N)} places of frames for {list(map(len, frames))}"
    if not frames:
        return Prompt(ids.tolist(), tags.tolist(), None)
    starts_N = np.isin(np.arange(len(places_N)), np.cumsum([0, *map(len, frames[:-1])]))
    return Prompt(ids.tolist(), tags.tolist(), Wave(places_N, np.concatenate(frames), starts_N))
