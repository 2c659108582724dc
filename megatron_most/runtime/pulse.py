"""What a rank is doing: said by its main thread at next to no cost, told to the other ranks by its watch.

All ranks do the same things in the same order and count them alike, so the rank with the lowest count is the one the
others wait for. Of things marked as a rank's own, which it does without the others, the time is added up as well.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from megatron_most.runtime.process import Facts

PATIENCE = 4.0  # what begins a run, and what is done once in many steps, may take so many times as long


@dataclass(frozen=True)
class _Doing:
    count: int = 0
    what: str = "starting"
    patience: float = PATIENCE
    own_since: float | None = None
    own_s: float = 0.0
    rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One rank at one moment."""

    serial: int
    """Of the beat: where it does not grow, the whole process stands still, its watch included."""
    count: int
    """Of the things begun; 0 where the rank does not say what it does."""
    what: str
    patience: float
    """Times the usual limit that this thing may take."""
    own_s: float
    """Seconds spent so far on things of its own."""
    rounds: int
    """How many of those."""
    process: Facts

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Beat:
        found = json.loads(text)
        return cls(**{field.name: found[field.name] for field in fields(cls)})


class Pulse:
    """One rank's. The main thread calls `at`; another may call `beat` at any time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._doing = clock, _Doing()

    def at(self, what: str, *, patience: float = 1.0, is_own: bool = False) -> None:
        """From here on this rank does `what`. All ranks call it alike. `is_own`: it needs no other rank for it, and it
        comes once a step.
        """
        before = self._doing
        now = self._clock() if is_own or before.own_since is not None else 0.0
        own_s = before.own_s + (now - before.own_since if before.own_since is not None else 0.0)
        # One assignment, since the other thread reads between any two.
        self._doing = _Doing(
            before.count + 1,
            what,
            patience,
            now if is_own else None,
            own_s,
            before.rounds + (before.own_since is not None),
        )

    def beat(self, serial: int, process: Facts) -> Beat:
        doing = self._doing
        return Beat(
            serial=serial,
            count=doing.count,
            what=doing.what,
            patience=doing.patience,
            own_s=doing.own_s,
            rounds=doing.rounds,
            process=process,
        )
