"""Spoken questions: what is asked, what is answered in text and in speech, and what counts as right."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_most.converse import Talker, UnitEars, opened_hf
from megatron_most.data.rows import ChatRow, Turn
from megatron_most.data.tasks import TaskContext, make_documents
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.data.unit_set import open_units
from megatron_most.errors import DataError
from megatron_most.evaluate import Data, Options, Tools
from megatron_most.evaluate.decoding import Decoding
from megatron_most.evaluate.result import read_result
from megatron_most.evaluate.sounds import _digests
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.tasks.questions import Questions, read_questions
from megatron_most.evaluate.tasks.tts import Hearing
from megatron_most.speech import CodecIdentity, JudgeIdentity, load_codec, save_vocoder
from megatron_most.speech.codebook_fit import fit_codebook
from tests.spoken_models import Spoken, apart, make_model, ran, read_records, teach

ANSWERS = ["the seven owls", "a lazy dog", "the old barn", "a brown fox"]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Spoken:
    return Spoken(tmp_path_factory.mktemp("questions") / "spoken", utterances=4)


@pytest.fixture(scope="module")
def learnt(spoken) -> Path:
    """A model that answers each of four sounds with a sentence, which it has learnt by heart."""
    units = open_units(spoken.root / "units")
    context = TaskContext(
        token_map=spoken.tokens,
        tokenizer=load_tokenizer(spoken.root / "tokenizer"),
        templates=load_templates("chat"),
    )
    rows = []
    for number, said in enumerate(ANSWERS):
        asked = tuple(units.find(number).units.tolist())
        rows.append(
            ChatRow(id=str(number), turns=(Turn(role="user", parts=(asked,)), Turn(role="assistant", parts=(said,))))
        )
    documents, rejections = make_documents("speech-instruct", rows, context)
    assert not rejections
    folder = make_model(spoken, spoken.root / "learnt")
    assert teach(folder, documents, 60, 6e-3)[-1] < 0.05
    return folder


@pytest.fixture
def questions(spoken, tmp_path) -> Path:
    """In the form of UltraEval-Audio, answers in each of the forms they come in."""
    references: Sequence[object] = ["Owls", ["cat", "LAZY DOG"], '["barn"]', "hound"]
    rows = [
        {"WavPath": f"audio/u{number}.wav", "Question": "?", "Answer": reference}
        for number, reference in enumerate(references)
    ]
    (tmp_path / "audio").symlink_to(spoken.root / "audio")
    path = spoken.root / "llama-questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_answers_in_text_are_right_where_a_reference_stands_in_them(spoken, learnt, questions, tmp_path):
    asked = Options(
        tasks=("qa-s2t",), model=learnt, out=tmp_path / "out", data=Data(questions=(questions,)), batch_size=3,
        tools=Tools(codec=str(spoken.root / "codec")),
    )  # fmt: skip
    [result] = ran(asked)
    records = read_records(tmp_path / "out" / "qa-s2t-llama-questions")
    assert [record["said"] for record in records] == ANSWERS
    assert [record["exist_match"] for record in records] == [True, True, True, False]
    assert result.scores["exist_match"].value == 0.75
    assert result.scores["exact_match"].value == 0.25  # "a lazy dog": articles and capitals do not count
    assert result.task == "qa-s2t/llama-questions"


class Plain:
    """One sample a unit, and who reads them back."""

    sample_rate, num_speakers = 16000, 1
    identity = JudgeIdentity("plain", "reader", "0" * 64)

    def __init__(self, codec: CodecIdentity, known: dict[tuple[int, ...], str]) -> None:
        self.codec, self.codec_hash, self._known = codec, codec.hash, known

    def speak(self, units: Sequence[int], durations: Sequence[int] | None = None, speaker: int = 0) -> np.ndarray:
        return np.asarray(units, np.float32)

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[str]:
        return [self._known.get(tuple(map(int, wave)), "noise") for wave in waves]


def answered_aloud(spoken: Spoken, folder: Path, file: Path) -> list[dict]:
    """The records of spoken answers, with a vocoder and a judge that lose nothing."""
    from transformers import AutoModelForCausalLM

    units = open_units(spoken.root / "units")
    known = {tuple(units.find(number).units.tolist()): said for number, said in enumerate(ANSWERS)}
    codec = load_codec(spoken.root / "codec")
    tools = Plain(codec.identity, known)
    subject = Subject(
        talker=Talker(opened_hf(folder, AutoModelForCausalLM.from_pretrained(folder))), facts={"folder": str(folder)}
    )
    hearing = Hearing(vocoder=tools, vocoder_hash="1" * 64, judge=tools)
    task = Questions("qa-s2s", subject, file, UnitEars(codec), Decoding(max_new_tokens=80), 0, hearing)
    records = task.run(range(4))
    assert task.about.config["judge"]["name"] == "plain" and task.about.config["codec"] == codec.identity.key
    return list(task.score(records, 0).records)


def test_answers_in_speech_are_heard_before_they_are_compared(spoken, tmp_path):
    """Each question is answered by the sound of the next, which stands for a sentence."""
    units = open_units(spoken.root / "units")
    sounds = [tuple(units.find(number).units.tolist()) for number in range(4)]
    rows = [
        ChatRow(
            id=str(number),
            turns=(Turn(role="user", parts=(asked,)), Turn(role="assistant", parts=(sounds[(number + 1) % 4],))),
        )
        for number, asked in enumerate(sounds)
    ]
    context = TaskContext(
        token_map=spoken.tokens,
        tokenizer=load_tokenizer(spoken.root / "tokenizer"),
        templates=load_templates("chat"),
    )
    documents, rejections = make_documents("speech-instruct", rows, context)
    assert not rejections
    folder = make_model(spoken, tmp_path / "aloud")
    assert teach(folder, documents, 80, 6e-3)[-1] < 0.05
    file = spoken.root / "trivia-qa.jsonl"
    references = ("lazy dog", "barn", "hound", "Owls")
    lines = [json.dumps({"WavPath": f"audio/u{n}.wav", "Answer": of}) for n, of in enumerate(references)]
    file.write_text("\n".join(lines) + "\n")
    records = apart(answered_aloud, spoken, folder, file)
    assert [record["said"] for record in records] == [*ANSWERS[1:], ANSWERS[0]]
    assert [record["exist_match"] for record in records] == [True, True, False, True]

    codec = load_codec(spoken.root / "codec")
    waves = [soundfile.read(spoken.root / "audio" / f"u{number}.wav", dtype="float32")[0] for number in range(4)]
    heard = ((wave, codec.encode([wave])[0], 0) for wave in waves)
    save_vocoder(fit_codebook(heard, codec.identity), tmp_path / "vocoder")
    asked = Options(
        tasks=("qa-s2s",), model=folder, out=tmp_path / "out", data=Data(questions=(file,)), batch_size=3,
        decoding=Decoding(max_new_tokens=80),
        tools=Tools(codec=str(spoken.root / "codec"), vocoder=tmp_path / "vocoder", judge="pocketsphinx"),
    )  # fmt: skip
    [result] = ran(asked)
    assert result.task == "qa-s2s/trivia-qa" and result.items == 4
    assert result.config["judge"]["name"] == "pocketsphinx" and len(result.data["sounds"]) == 64


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("not json", "cannot be read as a question"),
        ('{"WavPath": "a.wav"}', "needs a sound .* and an answer"),
        ('{"WavPath": "a.wav", "Answer": [3]}', "are no texts"),
        ('{"WavPath": "a.wav", "answer": 42}', "answers 42 are no texts; write a text, or a list of texts"),
        ('{"WavPath": "a.wav", "answer": 0}', "answers 0 are no texts"),
        ('{"WavPath": "a.wav", "answer": {"value": "Paris"}}', "are no texts"),
        ('{"WavPath": "a.wav", "Answer": ["  "]}', "holds no letter"),
        ('{"WavPath": "../a.wav", "Answer": "x"}', "leads out of"),
        ("[" * 100_000, "line 1: cannot be read as a question"),
        ('{"WavPath": "a.wav", "Answer": "x", "id": "\\ud800"}', "line 1: its id .* holds half a character"),
        ("", "holds no question"),
    ],
)
def test_bad_questions_are_refused_by_their_line(tmp_path, line, complaint):
    (tmp_path / "q.jsonl").write_text(f"{line}\n" if line else "")
    with pytest.raises(DataError, match=complaint):
        read_questions(tmp_path / "q.jsonl")


def test_an_answer_that_begins_with_a_bracket_is_a_list_only_where_it_is_one(tmp_path):
    file = tmp_path / "q.jsonl"
    rows = ["[Red] fox", '["red", "fox"]', "[" * 100_000]
    lines = [json.dumps({"WavPath": "a.wav", "Answer": answer + ("x" if answer[-1] == "[" else "")}) for answer in rows]
    file.write_text("\n".join(lines))
    first, second, third = (question.answers for question in read_questions(file))
    assert first == ("[Red] fox",) and second == ("red", "fox") and len(third) == 1


def test_a_pipe_in_place_of_a_sound_holds_nobody(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    assert _digests([tmp_path / "a.wav"], tmp_path / "kept.jsonl", 0, 1) == [bytes(32)]


def test_lines_without_words_are_skipped_and_a_second_row_of_an_id_is_refused(tmp_path):
    file = tmp_path / "q.jsonl"
    row = '{"id": "%s", "WavPath": "a.wav", "Answer": "x"}\n'
    file.write_text("\n" + row % "one" + "  \r\n\n" + '{"id": null, "WavPath": "a.wav", "Answer": "x"}\n\n')
    assert [question.id for question in read_questions(file)] == ["one", "5"]
    file.write_text(row % "one" + row % "two" + row % "one")
    with pytest.raises(DataError, match=r"q.jsonl, line 3: 'one' is the id of line 1 too; give each question its own"):
        read_questions(file)
    assert len(read_questions(file, limit=2)) == 2


def test_a_question_without_sound_is_left_out_with_its_reason(spoken, learnt, tmp_path):
    """Also where a folder's name is no UTF-8 and an answer holds half a character, which no file can hold."""
    here = tmp_path / os.fsdecode(b"questions \xff")
    here.mkdir()
    soundfile.write(os.fsencode(here / "none.wav"), np.zeros(0, np.float32), 16000)
    (here / "web-questions.jsonl").write_text(
        '{"WavPath": "none.wav", "Answer": "x"}\n{"WavPath": "gone.wav", "Answer": "x"}\n'
        '{"WavPath": "u0.wav", "Answer": ["\\ud800 x", "owls"]}\n'
    )
    (here / "u0.wav").write_bytes((spoken.root / "audio" / "u0.wav").read_bytes())
    asked = Options(
        tasks=("qa-s2t",), model=learnt, out=here / "out", data=Data(questions=(here / "web-questions.jsonl",)),
        tools=Tools(codec=str(spoken.root / "codec")), max_left_out=0.9,
    )  # fmt: skip
    [result] = ran(asked)
    assert result.left_out == {"empty file": 1, "missing file": 1} and result.scores["exist_match"].value == 1.0
    records = read_records(here / "out" / "qa-s2t-web-questions")
    assert records[2]["answers"] == ["\ud800 x", "owls"] and "questions \udcff" in records[1]["detail"]
    assert read_result(here / "out" / "qa-s2t-web-questions") == result
