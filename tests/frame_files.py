"""A made-up corpus as datasets of continuous frames (MFCCs, no download), for tests of what builds and trains on them.

Words are tones: each word of a tiny language has a pitch and an overtone of its own, so that a model can learn to
transcribe them by heart within a minute on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from megatron_most.data.build import build
from megatron_most.data.build_frames import FrameInputs
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.manifest import Manifest
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.speech import FrameSettings, open_frames
from megatron_most.vocab import TokenMap
from tests.data_files import RATE, WORDS, cut, write_manifest

WORD_S = 0.16


def spoken(words: list[str], seed: int) -> np.ndarray:
    """Each word as its tone, with some noise."""
    draw = np.random.default_rng(seed)
    times = np.arange(round(WORD_S * RATE)) / RATE
    parts = []
    for word in words:
        number = WORDS.index(word)
        low, high = 200 + 90 * number, 2200 + 170 * (number * 7 % len(WORDS))
        parts.append(0.3 * np.sin(2 * np.pi * low * times) + 0.15 * np.sin(2 * np.pi * high * times))
    return (np.concatenate(parts) + draw.normal(scale=0.005, size=len(parts) * len(times))).astype(np.float32)


def make_speech(root: Path, recordings: int = 3, cuts: int = 8, longest: int = 5) -> Manifest:
    """Recordings of several utterances each, one after the other, with a pause between."""
    audio = root / "audio"
    audio.mkdir(parents=True)
    rows, draw = [], np.random.default_rng(7)
    for r in range(recordings):
        said = [[str(w) for w in draw.choice(WORDS, size=int(draw.integers(2, longest + 1)))] for _ in range(cuts)]
        waves = [np.pad(spoken(words, 100 * r + c), (0, RATE // 10)) for c, words in enumerate(said)]
        whole = sum(map(len, waves)) / RATE
        soundfile.write(audio / f"r{r}.flac", np.concatenate(waves), RATE)
        start = 0
        for c, (words, wave) in enumerate(zip(said, waves, strict=True)):
            about = {"text": " ".join(words), "speaker": f"s{r}", "language": "en"}
            rows.append(cut(f"r{r}-c{c}", f"r{r}.flac", start / RATE, len(words) * WORD_S, whole, **about))
            start += len(wave)
    return write_manifest(root / "manifest", rows, audio)


def frame_inputs(speech: Manifest, tokenizer: Path, tag: str = "audio", **settings: Any) -> BuildInputs:
    return BuildInputs(
        manifests=(speech,),
        units=(),
        tokens=TokenMap.load(tokenizer / "token_map.json"),
        tokenizer=load_tokenizer(tokenizer),
        templates=load_templates("chat"),
        frames=FrameInputs(source=open_frames(FrameSettings(**settings)), tag=tag),  # type: ignore[arg-type]
    )


def build_frames(inputs: BuildInputs, folder: Path, **options: Any) -> Path:
    return build(inputs, BuildOptions(task="asr", **options), folder)
