"""Spoken questions (Llama-Questions, TriviaQA, WebQuestions): speech in, an answer in text or in speech out.

In: JSON lines as UltraEval-Audio takes them: WavPath (below the file's folder) and the reference answer or answers.
An answer in speech is spoken by a vocoder and heard by a judge first. It is right where a reference stands in it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_most.converse import Ears
from megatron_most.errors import DataError
from megatron_most.evaluate.decoding import Decoding
from megatron_most.evaluate.generation import answers_of
from megatron_most.evaluate.options import MAX_SECONDS
from megatron_most.evaluate.prompts import Prompts
from megatron_most.evaluate.speech import Sound, Span, hear
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.task import About, Fault, Record, Scored
from megatron_most.evaluate.tasks.tts import Hearing, units_said
from megatron_most.generate import Answer, Mode, Prompt
from megatron_most.runtime import confine, open_file, sha256_file
from megatron_most.score import exact_match, exist_match, score_of

Name = Literal["qa-s2t", "qa-s2s"]
_AUDIO = ("WavPath", "audio_path", "audio")
_ANSWERS = ("answers", "answer", "Answer", "Ref", "ref", "reference")
_MODES: dict[Name, Mode] = {"qa-s2t": "text-only", "qa-s2s": "audio-only"}


@dataclass(frozen=True)
class Question:
    id: str
    audio: Path
    answers: tuple[str, ...]


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """All of them, every line checked."""
    questions: list[Question] = []
    line_of: dict[str, int] = {}
    with open_file(path, remedy="give a file of questions as JSON lines") as file:
        for number, raw in enumerate(file, 1):
            if limit is not None and len(questions) == limit:
                break
            if not raw.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(raw)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                audio = next(row[name] for name in _AUDIO if isinstance(row.get(name), str))
                answers = _answers(next(row[name] for name in _ANSWERS if row.get(name) not in (None, "", [])))
            except StopIteration:
                needed = f"a sound ({' or '.join(_AUDIO)}) and an answer ({' or '.join(_ANSWERS)})"
                raise DataError(f"{where}: needs {needed}") from None
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(f"{where}: cannot be read as a question: {error}") from error
            id = str(number if row.get("id") is None else row["id"])
            if id.encode(errors="replace").decode() != id:
                raise DataError(f"{where}: its id {id!r:.60} holds half a character, which no file can; mend it")
            if id in line_of:
                raise DataError(f"{where}: {id!r} is the id of line {line_of[id]} too; give each question its own")
            line_of[id] = number
            questions.append(Question(id, confine(path.parent, audio), answers))
    if not questions:
        raise DataError(f"{path}: holds no question")
    return questions


def _answers(found: Any) -> tuple[str, ...]:
    """A text, a list of texts, or a list written out as JSON."""
    if isinstance(found, str) and found.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):  # "[Red] fox" is an answer as it stands
            written = json.loads(found)
            found = written if isinstance(written, list) else found
    answers = (found,) if isinstance(found, str) else tuple(found) if isinstance(found, list) else ()
    if not answers or not all(isinstance(answer, str) and any(map(str.isprintable, answer)) for answer in answers):
        raise ValueError(f"answers {str(found)[:80]} are no texts; write a text, or a list of texts")
    exist_match(answers, "")  # an answer without a sign to look for is refused now, not at the end
    return answers


class Questions:
    """See task.Task."""

    def __init__(
        self, name: Name, subject: Subject, file: Path, ears: Ears, decoding: Decoding, seed: int,
        hearing: Hearing | None = None, max_seconds: float = MAX_SECONDS, limit: int | None = None,
    ) -> None:  # fmt: skip
        """`ears`: the model's, proven to be."""
        self._task, self._subject, self._ears, self._hearing = name, subject, ears, hearing
        self._prompts, self._max_seconds, self._set = Prompts(subject), max_seconds, file.stem
        self._settings = decoding.settings(_MODES[name], seed)
        self._questions = read_questions(file, limit)
        if hearing is not None:
            subject.require_codec(hearing.vocoder.codec, "--vocoder")
        assert (hearing is not None) == (name == "qa-s2s"), "speech is heard, text is not"
        self._about = About(
            data={
                "hash": sha256_file(file),
                "file": str(file),
                "questions": len(self._questions),
            },
            config={
                "generation": decoding.facts(_MODES[name]),
                "templates": [subject.templates.name, subject.templates.hash],
                **ears.facts(),
                "max_seconds": max_seconds,
                **(hearing.facts() if hearing else {}),
            },
        )

    @property
    def name(self) -> str:
        return f"{self._task}/{self._set}"

    @property
    def about(self) -> About:
        return self._about

    def __len__(self) -> int:
        return len(self._questions)

    def id(self, number: int) -> str:
        return self._questions[number].id

    def sounds(self, number: int) -> Sequence[Path]:
        return [self._questions[number].audio]

    def run(self, numbers: Sequence[int]) -> list[Record]:
        asked = [self._questions[number] for number in numbers]
        sounds = hear([Span(question.audio) for question in asked], self._ears, self._max_seconds)
        prompts: list[Prompt | Fault] = [
            self._prompts.ask(question.id, of.heard) if isinstance(of, Sound) else of
            for question, of in zip(asked, sounds, strict=True)
        ]
        answers = answers_of(self._subject, [question.id for question in asked], prompts, self._settings)
        said = iter(self._said([answer for answer in answers if isinstance(answer, Answer)]))
        records: list[Record] = []
        for question, answer, of in zip(asked, answers, sounds, strict=True):
            if isinstance(answer, Fault):
                records.append(answer.record(question.id))
                continue
            assert isinstance(of, Sound), "what was asked was heard"
            records.append({
                "id": question.id,
                "answers": list(question.answers),
                "said": next(said),
                "stopped": answer.stopped,
                "tokens": len(answer.ids),
                "audio_seconds": round(of.seconds, 3),
            })  # fmt: skip
        return records

    def score(self, records: Sequence[Record], seed: int) -> Scored:
        matches = {"exist_match": exist_match, "exact_match": exact_match}
        counted = [
            {**record, **{name: match(record["answers"], record["said"]) for name, match in matches.items()}}
            for record in records
        ]
        words = {"exist_match": "answers that hold a reference", "exact_match": "answers that are a reference"}
        scores = {
            name: score_of([float(one[name]) for one in counted], [1.0] * len(counted), words[name], seed=seed)
            for name in matches
        }
        return Scored(scores=scores, records=counted)

    def _said(self, answers: Sequence[Answer]) -> list[str]:
        if self._hearing is None:
            return [self._subject.talker.tell(answer).text for answer in answers]
        return self._hearing.hear([self._hearing.say(units_said(self._subject, answer)) for answer in answers])
