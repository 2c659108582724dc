"""Prompts as training had them: a prompt is what a training document does not train on.

So the document builder itself makes it, with a stand-in for the response: whatever templates say, evaluation asks in
the same ids. A row of which it makes no document is a fault of that item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_most.converse import Heard, laid_out, with_frames
from megatron_most.data.document import AudioSpan, DocumentRuns
from megatron_most.data.rows import ChatRow, Part, Row, SpeechPart, Turn, Utterance
from megatron_most.data.tasks import TaskContext, make_documents
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.task import Fault
from megatron_most.generate import Prompt
from megatron_most.speech import UnitSequence

_STAND_IN = UnitSequence(np.zeros(1, np.uint16), np.ones(1, np.uint32), 0.04)


class Prompts:
    """Of one model."""

    def __init__(self, subject: Subject) -> None:
        self._model, self._context = subject.model, subject.talker.context

    def transcribe(self, utterance: Utterance, heard: UnitSequence | np.ndarray) -> Prompt | Fault:
        """Speech in, as units or as frames, for its text."""
        row = replace(utterance, text=utterance.text or "-")
        if isinstance(heard, UnitSequence):
            return self._of("asr", (row, heard))
        span = AudioSpan(row.audio, 0, row.start, row.duration, len(heard))
        return self._of("asr", (row, span), frames=[heard])

    def speak(self, utterance: Utterance) -> Prompt | Fault:
        """Text in, for its speech."""
        return self._of("tts", (utterance, _STAND_IN))

    def ask(self, id: str, heard: Heard) -> Prompt | Fault:
        """A user's spoken turn, for the assistant's."""
        frames = [heard] if isinstance(heard, np.ndarray) else []
        said: Part = SpeechPart("0") if isinstance(heard, np.ndarray) else heard
        turns = (Turn(role="user", parts=(said,)), Turn(role="assistant", parts=("-",)))
        context = with_frames(self._context, frames) if frames else None
        return self._of("speech-instruct", ChatRow(id=id, turns=turns), context, frames)

    def _of(
        self, task: str, row: Row | tuple[Utterance, UnitSequence] | tuple[Utterance, AudioSpan],
        context: TaskContext | None = None, frames: Sequence[np.ndarray] = (),
    ) -> Prompt | Fault:  # fmt: skip
        documents, rejections = make_documents(task, [row], context or self._context)
        if rejections:
            return Fault(rejections[0].reason, rejections[0].detail)
        prompt = laid_out(_untrained_start(documents[0]), self._context.token_map.begin_wave_id, frames)
        most = self._model.max_positions
        if len(prompt.ids) >= most:
            return Fault("too long for the model", f"{len(prompt.ids)} tokens before the answer; it has {most}")
        return prompt


def _untrained_start(document: DocumentRuns) -> tuple[np.ndarray, np.ndarray]:
    """Ids and tags up to the first that is trained on."""
    start = int(document.is_trained().argmax())
    return document.ids()[:start], document.tags()[:start]
