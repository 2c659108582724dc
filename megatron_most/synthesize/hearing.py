"""The judge of speech: what it makes of waves, and whether it is there at all."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError, MostError
from megatron_most.speech import Judge, load_judge
from megatron_most.speech.judge import SAMPLE_RATE
from megatron_most.speech.judge_pocketsphinx import unknown_words
from megatron_most.synthesize.dialogue import CUT, Dialogue, SpokenTurn
from megatron_most.synthesize.wer import word_error_rate
from megatron_most.synthesize.writer import JudgeFailed

_DECOYS = 16


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Who hears the waves."""

    name: Literal["pocketsphinx", "whisper", "faster-whisper", "none"] = "pocketsphinx"
    """pocketsphinx chooses between the turn and others of its length; none: only
    silence, noise and wrong lengths are found."""
    model: Path | None = None
    """The Whispers: the model's folder."""
    max_wer: float = 0.3
    """Word error rate above which a dialogue is set aside."""


class Ears:
    """The judge: one for all, or, where it must be told what may come, one for each dialogue."""

    def __init__(self, options: JudgeOptions, dialogues: Sequence[Dialogue]) -> None:
        if not 0 <= options.max_wer <= 10:
            raise DataError(f"--judge.max-wer {options.max_wer}: not an error rate; give 0 or more")
        self._options, self._lock = options, threading.Lock()
        self._judge: Judge | None = None
        self.gone: str | None = None
        """Why it is not asked any more."""
        self.identity: str = options.name
        if options.name in ("whisper", "faster-whisper"):
            if options.model is None:
                raise DataError(f"--judge.name {options.name}: give its folder with --judge.model")
            self._judge = load_judge(options.name, model=options.model)
            self.identity = str(self._judge.identity)
        elif options.name == "pocketsphinx":
            self._texts: list[str] = []
            try:
                load_judge("pocketsphinx", words=["yes"])
                texts = sorted({spoken_text(turn) for dialogue in dialogues for turn in dialogue.turns})
                self._texts = sorted((text for text in texts if not unknown_words([text])), key=len)
            except Exception as error:  # not installed, or not whole: its libraries raise what they like
                told = str(error) if isinstance(error, MostError) else f"pocketsphinx: {type(error).__name__}: {error}"
                self.gone = f"{told}; or speak without a judge: --judge.name none"
            self._lengths = [len(text) for text in self._texts]

    def rates(self, waves: list[np.ndarray], texts: list[str]) -> list[float | None]:
        """The word error rate of each wave. RowError "judge failed" if these cannot be heard, JudgeFailed if none."""
        if self._options.name == "none" or not waves:
            return [None] * len(waves)
        if self.gone is not None:
            raise JudgeFailed(self.gone)
        try:
            if self._judge is None:
                heard = load_judge("pocketsphinx", sentences=self._choices(texts)).transcribe(waves)
            else:
                with self._lock:  # one model, many threads
                    if self.gone is not None:  # while this one waited
                        raise JudgeFailed(self.gone)
                    heard = self._judge.transcribe(waves)
            if len(heard) != len(texts):
                raise JudgeFailed(f"it answered {len(heard)} of {len(texts)} waves")
        except JudgeFailed:
            raise
        except DataError as error:
            raise RowError("judge failed", str(error)[:200]) from error
        except Exception as error:  # a recogniser's libraries raise what they like, and the voices' work must not go
            raise JudgeFailed(f"{type(error).__name__}: {error}"[:200]) from error
        return [word_error_rate(text, found) for text, found in zip(texts, heard, strict=True)]

    def lives(self) -> bool:
        """Whether it hears at all: asked with noise, of which nothing but an answer is expected."""
        noise = np.random.default_rng(0).normal(scale=0.05, size=SAMPLE_RATE).astype(np.float32)
        try:
            self.rates([noise], ["yes"])
        except RowError:
            return True
        except JudgeFailed:
            return False
        return True

    def _choices(self, texts: list[str]) -> list[str]:
        """The texts among others that are as long: told only what is right, a judge hears it in any noise."""
        found = set(texts)
        for text in texts:
            at = bisect.bisect_left(self._lengths, len(text))
            found.update(self._texts[max(at - _DECOYS // 2, 0) : at + _DECOYS // 2])
        return sorted(found)


def spoken_text(turn: SpokenTurn) -> str:
    """What a voice says of it."""
    return turn.text.removesuffix(CUT).strip()
