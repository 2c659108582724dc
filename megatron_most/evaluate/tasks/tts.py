"""TTS: text in, units out, spoken by a vocoder and heard by a judge.

A judge mishears, and a vocoder slurs; so the same judge hears the real recordings, their units spoken again by the same
vocoder, what the model said, and, as a floor, the real units in a shuffled order. The model can be as good as the
second, and what the judge makes of the fourth is its guessing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.evaluate.decoding import Decoding
from megatron_most.evaluate.generation import answers_of, seed_of
from megatron_most.evaluate.measures import Measure
from megatron_most.evaluate.speech import Utterances
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.task import Fault, Record, Scored
from megatron_most.evaluate.tasks.utterances import OfUtterances, errors_of, rates_of
from megatron_most.generate import Answer
from megatron_most.runtime import writing
from megatron_most.score import score_of
from megatron_most.speech import Judge, UnitSequence, Vocoder, require_codec

SIDES = ("generated", "real", "resynthesised", "shuffled")


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """What speech is made and heard with."""

    vocoder: Vocoder
    vocoder_hash: str
    """Of its folder."""
    judge: Judge
    speaker: int = 0
    measures: Sequence[Measure] = ()
    keep: Path | None = None
    """A folder for what the model said, one file an utterance."""

    def facts(self) -> dict[str, Any]:
        return {
            "vocoder": self.vocoder_hash,
            "judge": self.judge.identity.to_dict(),
            "speaker": self.speaker,
            "measures": {measure.name: measure.identity for measure in self.measures},
        }

    def say(self, units: Sequence[int], durations: Sequence[int] | None = None) -> np.ndarray:
        """A wave; of no units, none."""
        if not len(units):
            return np.zeros(0, np.float32)
        return self.vocoder.speak(units, durations, self.speaker)

    def hear(self, waves: Sequence[np.ndarray]) -> list[str]:
        """What the judge makes of each; nothing is heard in silence without length."""
        heard = iter(self.judge.transcribe([wave for wave in waves if len(wave)]))
        return [next(heard) if len(wave) else "" for wave in waves]


def units_said(subject: Subject, answer: Answer) -> list[int]:
    """Of all that is spoken in an answer."""
    return [unit for span in subject.talker.tell(answer).units for unit in span]


@dataclass
class _Said:
    """One utterance on all sides."""

    answer: Answer
    waves: dict[str, np.ndarray] = field(default_factory=dict)


class Tts(OfUtterances):
    """See task.Task."""

    def __init__(
        self, subject: Subject, utterances: Utterances, hearing: Hearing, decoding: Decoding, seed: int,
        language: str | None = None,
    ) -> None:  # fmt: skip
        self._hearing, self._seed = hearing, seed
        identity = utterances.identity
        subject.require_codec(identity, utterances.where)
        require_codec(hearing.vocoder, identity, utterances.where)
        speech = {"codec": identity.key, **hearing.facts()}
        super().__init__("tts", "audio-only", subject, utterances, decoding, seed, language, speech)

    def sounds(self, number: int) -> Sequence[Path]:
        return self._utterances.sound(number)

    def run(self, numbers: Sequence[int]) -> list[Record]:
        rows = [self._utterances.rows[number] for number in numbers]
        prompts = [self._prompts.speak(row) for row in rows]
        answers = answers_of(self._subject, [row.id for row in rows], prompts, self._settings)
        units = self._utterances.units_of(numbers)
        said = [self._say(*parts) for parts in zip(numbers, answers, units, strict=True)]
        good = [one for one in said if isinstance(one, _Said)]
        heard = {side: iter(self._hearing.hear([one.waves[side] for one in good])) for side in SIDES}
        records: list[Record] = []
        for row, one in zip(rows, said, strict=True):
            if isinstance(one, Fault):
                records.append(one.record(row.id))
                continue
            if self._hearing.keep is not None:
                for side, below in (("generated", ""), ("resynthesised", "resynthesised")):
                    _keep(self._hearing.keep / below, row.id, one.waves[side], self._hearing.vocoder.sample_rate)
            records.append({
                "id": row.id,
                "reference": row.text,
                "heard": {side: next(heard[side]) for side in SIDES},
                "measures": self._measured(one.waves),
                "units": len(units_said(self._subject, one.answer)),
                "stopped": one.answer.stopped,
                "tokens": len(one.answer.ids),
                "audio_seconds": len(one.waves["generated"]) / self._hearing.vocoder.sample_rate,
            })  # fmt: skip
        return records

    def score(self, records: Sequence[Record], seed: int) -> Scored:
        sides: dict[str, dict[str, Any]] = {}
        counted: list[Record] = [{**record, "errors": {}} for record in records]
        for side in SIDES:
            errors = [errors_of(record["reference"], record["heard"][side], self._normaliser) for record in records]
            for record, found in zip(counted, errors, strict=True):
                record["errors"][side] = found
            sides[side] = rates_of(errors, seed)
        scores = dict(sides["generated"])
        for measure in self._hearing.measures:
            values = [record["measures"][measure.name] for record in records]
            said = [value for value in values if value is not None]
            if said:
                scores[measure.name] = score_of(said, [1.0] * len(said), measure.measures, seed=seed)
        unfinished = sum(record["stopped"] != "eos" for record in records)
        return Scored(
            scores=scores,
            parts={rate: {side: sides[side][rate] for side in SIDES} for rate in ("wer", "cer")},
            records=counted,
            notes={"answers_cut_off": unfinished},
        )

    def _say(self, number: int, answer: Answer | Fault, units: UnitSequence | Fault) -> _Said | Fault:
        rate = self._hearing.vocoder.sample_rate
        real = self._utterances.wave(number, rate)
        for part in (answer, units, real):
            if isinstance(part, Fault):
                return part
        assert isinstance(answer, Answer) and isinstance(units, UnitSequence) and isinstance(real, np.ndarray)
        order = list(range(len(units)))
        random.Random(seed_of(self._seed, self.id(number))).shuffle(order)
        of_unit, durations = units.units.tolist(), units.durations.tolist()
        return _Said(answer, {
            "generated": self._hearing.say(units_said(self._subject, answer)),
            "real": real,
            "resynthesised": self._hearing.say(of_unit, durations),
            "shuffled": self._hearing.say([of_unit[at] for at in order], [durations[at] for at in order]),
        })  # fmt: skip

    def _measured(self, waves: dict[str, np.ndarray]) -> dict[str, float | None]:
        """None where the model said nothing."""
        said, rate = waves["generated"], self._hearing.vocoder.sample_rate
        return {
            measure.name: measure(said, waves["real"], rate) if len(said) else None
            for measure in self._hearing.measures
        }


def _keep(folder: Path, id: str, wave: np.ndarray, sample_rate: int) -> None:
    import soundfile

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in id).lstrip(".") or "_"
        soundfile.write(folder / f"{name}.wav", wave, sample_rate)
