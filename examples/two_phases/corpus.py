"""A made-up world small enough to be learnt in minutes: a few hundred sentences, and a voice that spells them in tones.

Each letter is a tone of its own, so that speech and text tell the same thing and a model can find out how. Everything
follows from the seed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

RATE = 16000
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLOURS = ("red", "blue", "green", "black", "white")
ANIMALS = ("cats", "dogs", "birds", "fish", "mice")
ACTS = ("run", "eat", "sleep", "sing", "play")
VOICES = {"high": 1.12, "low": 1.0}


def sentence(rng: np.random.Generator) -> str:
    return " ".join(str(rng.choice(words)) for words in (NUMBERS, COLOURS, ANIMALS, ACTS))


def speak(text: str, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """A tone with two overtones a letter, silence for a blank, a little noise over all."""
    pieces = []
    for letter in text:
        places = np.arange(int(RATE * rng.uniform(0.07, 0.09))) / RATE
        if letter == " ":
            pieces.append(np.zeros(len(places)))
            continue
        base = pitch * 180 * 2 ** ((ord(letter) - ord("a")) / 9)
        tone = sum(np.sin(2 * np.pi * base * n * places) / n for n in (1, 2, 3))
        pieces.append(0.2 * tone * np.hanning(len(places)) ** 0.25)
    wave = np.concatenate(pieces)
    return (wave + rng.normal(0, 1e-3, len(wave))).astype(np.float32)


def write_corpus(out: Path, utterances: int, seed: int) -> None:
    """wav/*.wav with utterances.jsonl, texts.jsonl, and dialogues that are spoken (spoken.jsonl) or written."""
    import soundfile

    rng = np.random.default_rng(seed)
    (out / "wav").mkdir(parents=True, exist_ok=True)
    said: dict[str, str] = {}
    lines = []
    for number in range(utterances):
        id, text = f"{number:04d}", sentence(rng)
        voice = str(rng.choice(list(VOICES)))
        said[id] = text
        soundfile.write(out / "wav" / f"{id}.wav", speak(text, VOICES[voice], rng), RATE)
        lines.append({"id": id, "audio": f"{id}.wav", "text": text, "speaker": voice})
    write_lines(out / "utterances.jsonl", lines)
    write_lines(out / "texts.jsonl", [{"id": f"{n:04d}", "text": f"{sentence(rng)}."} for n in range(2 * utterances)])
    spoken, written = [], []
    for id, text in said.items():
        asked, answer = question(text, rng)
        spoken.append(dialogue([{"text": f"{asked} "}, {"speech": f"tones-{id}"}], answer))
        other = sentence(rng)
        asked, answer = question(other, rng)
        written.append(dialogue(f"{asked} {other}", answer))
    write_lines(out / "spoken.jsonl", spoken)
    write_lines(out / "written.jsonl", written)


def question(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """Something to be asked about a sentence, and its answer."""
    number, colour, animal, act = text.split()
    return [("How many?", number), ("Which colour?", colour), ("Who?", animal), ("What do they do?", act)][
        int(rng.integers(4))
    ]


def dialogue(content: object, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
