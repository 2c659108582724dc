"""Score: a value, how many items it is over, what it measures, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of an evaluation."""

    measures: str
    """In words: "word errors / reference words"."""
    value: float
    low: float
    high: float
    """Bounds of the bootstrap interval."""
    items: int
    """Utterances, pairs, questions or documents: what the bootstrap draws."""
    total: float
    """What the value is a share of: words, characters, pairs, tokens."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Score:
        """The inverse of `to_dict`; TypeError where a field is missing, unknown or of another type."""
        found = cls(**values)
        numbers = (found.value, found.low, found.high, found.items, found.total)
        if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            raise TypeError(f"a score of {numbers}")
        return found
