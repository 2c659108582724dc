"""From a draft to a dialogue, or the reason why not: speakable, of the right shape, safe, worth hearing.

Each check raises RowError with a fixed reason, so that what was set aside can be counted. A draft is held to its size
before anything else looks at it: a reply of ten minutes, or of ten megabytes, costs nothing here.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_most.data.overlap import normalised_words
from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError
from megatron_most.runtime import read_file
from megatron_most.synthesize.brief import WORDS_PER_SECOND, Brief, Shape
from megatron_most.synthesize.dialogue import CUT, Dialogue, SpokenTurn
from megatron_most.synthesize.english import check_english
from megatron_most.synthesize.phrases import PROMPTS
from megatron_most.synthesize.speakable import spoken_english
from megatron_most.synthesize.writer import Draft

_SIGNS_PER_WORD = 12  # more than any text has, markup and blanks counted; what is longer is not even read
_MACHINE = re.compile(
    r"\bas an? (?:AI|artificial intelligence|large language|language) (?:language )?(?:model|assistant)?"
    r"|\bI(?:'m| am) (?:just |only )?an? (?:AI|language model|chatbot)\b|\bmy (?:training data|knowledge cut-?off)\b"
    r"|\bI (?:cannot|can't|am unable to) (?:assist|help|comply) with (?:that|this) request\b"
    r"|\b(?:as shown|see|listed) (?:in the )?(?:table|figure|code|link|image|below|above)\b|\bclick (?:here|on)\b"
    r"|\[(?:your|insert|name|company)[^\]]*\]",
    re.I,
)
_REPEATED = 0.5  # share of a turn's runs of three words that may be repeats of earlier ones in it
_FEWEST_RUNS = 12


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What is set aside."""

    code: Literal["refuse", "drop"] = "refuse"
    """Code in a text: refuse the dialogue, or leave the code out."""
    near_duplicate: float = 0.8
    """Dialogues that share this much with an earlier one (Jaccard of runs of three words) are set aside; 1 = never."""
    safety: Path | None = None
    """Patterns by category, as TOML; not set = those of the package."""


class Safety:
    """Patterns of one file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path or PROMPTS / "safety.toml"
        data = read_file(self.path, remedy="give a TOML file with --filters.safety")
        try:
            found = tomllib.loads(data.decode())
            self._patterns = {
                name: [re.compile(pattern, re.I | re.S) for pattern in listed] for name, listed in found.items()
            }
        except (ValueError, TypeError, RecursionError, re.error) as error:
            raise DataError(f"{self.path}: {error}; give lists of patterns: category = ['...']") from error
        self.hash = hashlib.sha256(data).hexdigest()

    def check(self, text: str) -> None:
        """RowError "unsafe: CATEGORY"; the text itself is not repeated in the report."""
        for name, patterns in self._patterns.items():
            if any(pattern.search(text) for pattern in patterns):
                raise RowError(f"unsafe: {name}")


def finish(draft: Draft, brief: Brief, shape: Shape, filters: Filters, safety: Safety) -> Dialogue:
    """The dialogue of a draft. RowError where it is none that can be used."""
    if not draft:
        raise RowError("empty dialogue")
    most_signs = brief.most_words * _SIGNS_PER_WORD
    for number, turn in enumerate(draft, 1):
        if len(turn.text) > most_signs:
            raise _too_long(number, f"{len(turn.text)} characters", brief)
    roles = [turn.role for turn in draft]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise RowError("roles do not alternate", ", ".join(roles)[:80])
    if not shape.min_exchanges <= len(draft) // 2 <= shape.max_exchanges:
        raise RowError("wrong number of turns", f"{len(draft) // 2} exchanges")
    cut = [number for number, turn in enumerate(draft) if turn.interrupted]
    if any(number % 2 == 0 or number == len(draft) - 1 for number in cut):
        raise RowError("interruption out of place", "only the assistant is cut off, and speaks again")
    if brief.interrupted is not None and not cut:
        raise RowError("no interruption")
    if brief.interrupted is None and cut:  # --shape.interruptions is a share of dialogues, and 0 of them none
        raise RowError("unwanted interruption", f"turn {cut[0] + 1}")
    turns = []
    for number, turn in enumerate(draft):
        safety.check(turn.text)
        try:
            text = spoken_english(turn.text, drop_code=filters.code == "drop")
        except RowError as error:
            raise RowError(error.reason, f"turn {number + 1}: {error.detail}".removesuffix(": ")) from error
        if turn.interrupted:
            text = f"{text.rstrip(' .,;:!?-' + CUT)} {CUT}"
        _check_turn(text, number + 1, brief)
        interrupts = number > 0 and draft[number - 1].interrupted
        turns.append(SpokenTurn(role=turn.role, text=text, interrupted=turn.interrupted, interrupts=interrupts))
    dialogue = Dialogue(
        id=brief.id,
        turns=tuple(turns),
        origin=brief.origin,
        topic=brief.topic.name if brief.topic else None,
        persona=brief.persona.name or None if brief.persona else None,
    )
    safety.check(dialogue.text)
    check_english(dialogue.text)
    _check_repeats(dialogue)
    return dialogue


def _check_turn(text: str, number: int, brief: Brief) -> None:
    words = len(text.split())
    if words > brief.most_words:
        raise _too_long(number, f"{words} words, some {words / WORDS_PER_SECOND:.0f} s", brief)
    if found := _MACHINE.search(text):
        raise RowError("speaks as a program", f"turn {number}: {found[0]!r}")
    runs = _runs(text)
    if len(runs) >= _FEWEST_RUNS and len(set(runs)) < (1 - _REPEATED) * len(runs):
        raise RowError("repeats itself", f"turn {number}: {len(set(runs))} of {len(runs)} runs of three words differ")


def _check_repeats(dialogue: Dialogue) -> None:
    """Whole turns said twice by one side: a writer that got stuck. What was cut off may be said again."""
    said = Counter(
        (turn.role, " ".join(normalised_words(turn.text))) for turn in dialogue.turns if len(turn.text.split()) > 4
    )
    if said and (most := max(said.values())) > 1:
        raise RowError("repeats itself", f"one turn is there {most} times")
    for one, next_one in zip(dialogue.turns, dialogue.turns[1:], strict=False):
        if one.text == next_one.text:
            raise RowError("repeats itself", "the other side's words")


def _runs(text: str) -> list[tuple[str, ...]]:
    words = normalised_words(text)
    return list(zip(words, words[1:], words[2:], strict=False))


def _too_long(number: int, found: str, brief: Brief) -> RowError:
    return RowError("turn too long", f"turn {number}: {found}; at most {brief.most_words} words (--shape)")
