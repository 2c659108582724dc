"""What the paper and its peers report, in percent, and which of our results stands beside each number.

Taken from the papers' tables as printed; their speech is English. They are of other test lists, judges and normalisers
than ours may be, so a number beside another is a hint and no proof.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PAPER = "MoST (paper)"
QWEN2_AUDIO = "Qwen2-Audio"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    section: str
    label: str
    task: str
    """Matches the whole name of our task, as a regular expression."""
    score: str
    """Which of its scores."""
    known: dict[str, float] = field(default_factory=dict)
    """Who -> percent."""
    is_error: bool = False
    """Whether less is better."""

    def fits(self, task: str) -> bool:
        return re.fullmatch(self.task, task) is not None


_SETS = (
    ("LibriSpeech test-clean", "librispeech/test.clean"),
    ("LibriSpeech test-other", "librispeech/test.other"),
    ("VoxPopuli", r"voxpopuli/\S*test\S*"),
    ("Common Voice", r"commonvoice/\S*test\S*"),
)
_ASR = ({PAPER: 2.0, QWEN2_AUDIO: 1.8}, {PAPER: 3.7, QWEN2_AUDIO: 3.6}, {PAPER: 6.2}, {PAPER: 8.4})
_TTS = (6.0, 7.2, 10.1, 11.5)
_CHOICES = (
    ("sWUGGY", "swuggy/.*", 75.28),
    ("sBLIMP", "sblimp/.*", 63.42),
    ("Topic-StoryCloze (tSC)", "tsc", 83.64),
    ("StoryCloze (sSC)", "ssc", 65.43),
)
_QUESTIONS = (
    ("Llama-Questions", "llama[-_]?q.*", (74.8, 62.6)),
    ("TriviaQA", ".*trivia.*", (43.5, 32.1)),
    ("WebQuestions", ".*web[-_]?q.*", (58.2, 44.7)),
)
_ASR_ROWS = [
    Row(section="ASR, WER", label=label, task=f"asr/{of}", score="wer", known=known, is_error=True)
    for (label, of), known in zip(_SETS, _ASR, strict=True)
]
_TTS_ROWS = [
    Row(section="TTS, WER of a judge", label=label, task=f"tts/{of}", score="wer", known={PAPER: value}, is_error=True)
    for (label, of), value in zip(_SETS, _TTS, strict=True)
]
_CHOICE_ROWS = [
    Row(section="Spoken language modelling, accuracy", label=label, task=task, score="accuracy", known={PAPER: value})
    for label, task, value in _CHOICES
]
_QUESTION_ROWS = [
    Row(section=f"Spoken questions, answers in {kind}", label=label, task=f"(?i)qa-{how}/{of}", score="exist_match",
        known={PAPER: values[at]})
    for at, (how, kind) in enumerate((("s2t", "text"), ("s2s", "speech")))
    for label, of, values in _QUESTIONS
]  # fmt: skip
_TEXT_ROWS = [
    Row(section="Text", label=label, task=task, score=score)
    for label, task, score in (
        ("MMLU", "mmlu", "acc"),
        ("GSM8K", "gsm8k", "exact_match (strict-match)"),
        ("TriviaQA", "triviaqa", "exact_match (remove_whitespace)"),
        ("HumanEval", "humaneval", "pass@1"),
    )
]
ROWS: tuple[Row, ...] = (*_ASR_ROWS, *_TTS_ROWS, *_CHOICE_ROWS, *_QUESTION_ROWS, *_TEXT_ROWS)
PEERS = (PAPER, QWEN2_AUDIO)
