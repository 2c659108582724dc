"""Who says a dialogue, in which voices, and which of its sides is speech: drawn by (seed, its id)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from megatron_most.errors import DataError
from megatron_most.synthesize.dialogue import Dialogue

SIDES = {
    "speech_to_text": ("user",),
    "text_to_speech": ("assistant",),
    "speech_to_speech": ("user", "assistant"),
    "text_to_text": (),
}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Shares of dialogues by which side speaks; they need not sum to 1."""

    speech_to_text: float = 0.3
    """The user speaks, the assistant writes."""
    text_to_speech: float = 0.2
    speech_to_speech: float = 0.4
    text_to_text: float = 0.1

    def check(self) -> None:
        given = [getattr(self, name) for name in SIDES]
        if not all(0 <= weight < 1e9 for weight in given) or not sum(given) > 0:
            raise DataError(f"--weights {', '.join(map(str, given))}: not shares; give 0 or more, and one above 0")


@dataclass(frozen=True, slots=True)
class Cast:
    """One dialogue's mode, and the voice of each side, kept through the dialogue."""

    mode: str
    voices: dict[str, str]

    @property
    def is_spoken(self) -> bool:
        return bool(SIDES[self.mode])

    def speaks(self, role: str) -> bool:
        return role in SIDES[self.mode]


def cast(dialogue: Dialogue, weights: Weights, voices: tuple[str, ...], assistant: tuple[str, ...], seed: int) -> Cast:
    """The two sides have different voices wherever there are two."""
    draw = random.Random(f"{seed}/{dialogue.id}/cast")
    [mode] = draw.choices(list(SIDES), [getattr(weights, name) for name in SIDES])
    second = draw.choice(assistant or voices)
    first = draw.choice([voice for voice in voices if voice != second] or list(voices))
    return Cast(mode, {"user": first, "assistant": second})
