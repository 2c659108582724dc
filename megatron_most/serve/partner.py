"""Who the server talks with. What it needs of a model: turns in, tokens out one by one, and their text and speech."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_most.generate import Answer, Prompt, Settings
from megatron_most.vocab import TokenMap

Wave = np.ndarray
"""float32, mono, at the partner's sample rate."""


Part = str | Wave | tuple[int, ...]
"""Words, a recording, or units."""


@dataclass(frozen=True)
class Turn:
    """What one side said, in order."""

    role: str
    parts: tuple[Part, ...]


class Partner(Protocol):
    """All but `answer` may be called from any thread; `answer` from one alone."""

    name: str
    tokens: TokenMap
    sample_rate: int
    voices: Sequence[str]
    """Those that it can speak with; none: it cannot be heard."""
    why_deaf: str
    """"": turns may hold waves. Else why they may not."""

    def prompt(self, turns: Sequence[Turn]) -> Prompt:
        """DataError where they cannot be put into one."""

    def answer(
        self,
        prompts: Sequence[Prompt],
        settings: Sequence[Settings],
        on_token: Callable[[int, int, int], None],
        is_cancelled: Callable[[int], bool],
    ) -> list[Answer]:
        """See generate.generate."""

    def text(self, ids: Sequence[int]) -> str:
        """Of text tokens."""

    def speak(self, units: Iterable[int], voice: str) -> Iterator[Wave]:
        """Pieces of the wave, as soon as there are units enough for them."""

    def group(self, tag: int) -> str:
        """Which experts tokens of this tag use: their group's name, or "shared"."""
