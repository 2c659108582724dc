"""ASR: speech in, text out by free-running generation; word and character errors over the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_most.evaluate.decoding import Decoding
from megatron_most.evaluate.generation import answers_of
from megatron_most.evaluate.speech import Utterances
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.task import Fault, Record, Scored
from megatron_most.evaluate.tasks.utterances import OfUtterances, errors_of, rates_of
from megatron_most.generate import Prompt


class Asr(OfUtterances):
    """See task.Task."""

    def __init__(
        self, subject: Subject, utterances: Utterances, decoding: Decoding, seed: int, language: str | None = None
    ) -> None:
        if utterances.frames is None:
            subject.require_codec(utterances.identity, utterances.where)
        heard = utterances.frames.facts() if utterances.frames else {"codec": utterances.identity.key}
        super().__init__("asr", "text-only", subject, utterances, decoding, seed, language, heard)

    def sounds(self, number: int) -> Sequence[Path]:
        reads = self._utterances.units is None or self._utterances.frames is not None
        return self._utterances.sound(number) if reads else ()

    def run(self, numbers: Sequence[int]) -> list[Record]:
        rows = [self._utterances.rows[number] for number in numbers]
        prompts: list[Prompt | Fault] = []
        for row, heard in zip(rows, self._utterances.heard(numbers), strict=True):
            if not (row.text or "").strip():
                prompts.append(Fault("missing text", "an utterance without its transcript cannot be scored"))
            else:
                prompts.append(heard if isinstance(heard, Fault) else self._prompts.transcribe(row, heard))
        answers = answers_of(self._subject, [row.id for row in rows], prompts, self._settings)
        return [
            answer.record(row.id)
            if isinstance(answer, Fault)
            else {
                "id": row.id,
                "reference": row.text,
                "hypothesis": self._subject.talker.tell(answer).text,
                "stopped": answer.stopped,
                "tokens": len(answer.ids),
                "audio_seconds": row.duration,
            }
            for row, answer in zip(rows, answers, strict=True)
        ]

    def score(self, records: Sequence[Record], seed: int) -> Scored:
        counted = [
            {**record, **errors_of(record["reference"], record["hypothesis"], self._normaliser)} for record in records
        ]
        unfinished = sum(record["stopped"] != "eos" for record in records)
        return Scored(scores=rates_of(counted, seed), records=counted, notes={"answers_cut_off": unfinished})
