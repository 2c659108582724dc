"""Everything that is said and asked in the demo, as files that the data pipeline reads.

    OUT/train/*.wav, test/, unseen/, shuffled/     recordings
    OUT/train.jsonl, test.jsonl, ...               lists of them: for training; for evaluation
    OUT/own-train.jsonl, own-test.jsonl            those of them in the voice that the model learns to speak with
    OUT/texts.jsonl, spoken.jsonl, written.jsonl   plain text; dialogues, asked in speech or in writing
    OUT/questions.jsonl, OUT/stories/              spoken questions; sentences with right and wrong order of words

A question is a recorded sentence, a pause, and one of a few recorded questions about it in the same voice.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speech
from domain import PHRASES, QUESTIONS, Sentence, sentences, words
from speech import OWN, UNSEEN, VOICES, Spoken

from megatron_most.runtime import write_atomically


@dataclass(frozen=True)
class Corpus:
    """How many of what."""

    train: int
    """Sentences spoken for training, in turn by each of the voices."""
    phrases: int
    """Parts of sentences, likewise; and every word by itself in every voice."""
    test: int
    """Other sentences, likewise."""
    unseen: int
    """Of these, how many an unseen voice speaks too."""
    stories: int
    asked: int
    """Of the trained ones, about how many a question is asked in speech."""
    texts: int
    """Written ones for training, the spoken ones among them and no test sentence."""
    seed: int = 0


def write_corpus(out: Path, size: Corpus) -> None:
    """All of it; what is there stays."""
    draw = random.Random(size.seed)
    drawn = sentences(size.test + size.texts, draw)
    test, train = drawn[: size.test], drawn[size.test :]
    said = {"train": _by_turns(train[: size.train], "train"), "test": _by_turns(test, "test")}
    said["parts"] = _by_turns(sentences(size.phrases, draw, PHRASES), "parts")
    if size.phrases:
        alone = [Sentence((("word", word),)) for word in words() for _ in VOICES]
        said["parts"] |= _by_turns(alone, "words")
    said["unseen"] = {f"unseen/{at:04d}": (one, UNSEEN) for at, one in enumerate(test[: size.unseen])}
    clips = {f"clips/{kind}-{voice}": (asked, voice) for kind, asked in QUESTIONS.items() for voice in VOICES}
    wrong = {id.replace("test/", "wrong/"): pair for id, pair in list(said["test"].items())[: size.stories]}
    wanted = [Spoken(id, one.text, voice) for part in said.values() for id, (one, voice) in part.items()]
    wanted += [Spoken(id, question, voice) for id, (question, voice) in clips.items()]
    wanted += [Spoken(id, one.scrambled(draw), voice) for id, (one, voice) in wrong.items()]
    speech.speak(wanted, out)
    lists = {name: [_row(id, one.text, voice) for id, (one, voice) in part.items()] for name, part in said.items()}
    asked, spoken = _ask(out, dict(list(said["train"].items())[: size.asked]), draw)
    _, questions = _ask(out, said["test"], draw)
    lists["train"] += lists.pop("parts") + asked
    for name in ("train", "test"):
        lists[f"own-{name}"] = [row for row in lists[name] if row["speaker"] == OWN]
    for row in lists["test"]:
        speech.shuffle(out / row["audio"], out / f"shuffled/{row['id']}.wav", draw)
    lists["shuffled"] = [{**row, "audio": f"shuffled/{row['id']}.wav"} for row in lists["test"]]
    lists["texts"] = [{"id": f"{at:05d}", "text": one.text} for at, one in enumerate(train)]
    lists["spoken"] = [_dialogue([{"speech": f"animals-{one.id}"}], one.answer) for one in spoken]
    written = [(one, *one.ask(draw)) for one in train]
    lists["written"] = [_dialogue(f"{one.text} {question}", answer) for one, question, answer in written]
    lists["questions"] = [{"id": one.id, "WavPath": one.audio, "answer": one.answer} for one in questions]
    (out / "stories").mkdir(exist_ok=True)
    for at, id in enumerate(wrong):
        for side, folder in (("correct", "test"), ("wrong", "wrong")):
            write_atomically(out / f"stories/{at}_{side}.wav", (out / f"{folder}/{Path(id).name}.wav").read_bytes())
    for name, rows in lists.items():
        write_atomically(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


Said = dict[str, tuple[Sentence, str]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A sentence and a question about it, in one recording."""

    id: str
    audio: str
    answer: str


def _by_turns(ones: list[Sentence], folder: str) -> Said:
    return {f"{folder}/{at:04d}": (one, VOICES[at % len(VOICES)]) for at, one in enumerate(ones)}


def _row(path: str, text: str, voice: str) -> Row:
    return {"id": path.replace("/", "-"), "audio": f"{path}.wav", "text": text, "speaker": voice}


def _ask(out: Path, said: Said, draw: random.Random) -> tuple[list[Row], list[Asked]]:
    """One question about each: utterances with sentence and question, and what is asked."""
    rows, asked = [], []
    for path, (one, voice) in said.items():
        question, answer = one.ask(draw)
        kind = next(kind for kind, known in QUESTIONS.items() if known == question)
        row = _row(f"asked/{path.replace('/', '-')}", f"{one.text} {question}", voice)
        speech.ask(out / f"{path}.wav", out / f"clips/{kind}-{voice}.wav", out / row["audio"])
        rows.append(row)
        asked.append(Asked(row["id"], row["audio"], answer))
    return rows, asked


def _dialogue(asked: Any, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
