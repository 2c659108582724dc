"""From the ranks' beats to a verdict: which rank all others wait for, and which one is merely slow.

Time is what the judge itself has lived through, a look at a time: a job that the scheduler puts to sleep as a whole,
and wakes hours later, is not a job that hangs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

from megatron_most.runtime.pulse import PATIENCE, Beat

EVERY_STEPS = 100  # how many steps an interval has, at least
TIMES = 1.5  # a rank is slow whose own time is so many times the median,
SHARE = 0.05  # and longer than that by this part of a step,
IN_A_ROW = 3  # in so many intervals one after the other


@dataclass(frozen=True)
class Verdict:
    """A job that hangs."""

    words: str
    culprits: tuple[int, ...]
    """All ranks where none is behind the others."""
    are_silent: bool
    """Their processes stand still as a whole, so they can neither say where they are nor end by themselves."""


class Judge:
    """Finds out that nothing goes on, among `ranks`; where these are not all, whether one of them is silent."""

    def __init__(self, limit_s: float, ranks: Sequence[int], are_all: bool = True) -> None:
        self._limit_s, self._ranks, self._are_all = limit_s, ranks, are_all
        self._seen: dict[int, Beat] = {}
        self._still_s = dict.fromkeys(ranks, 0.0)
        self._silent_s = dict.fromkeys(ranks, 0.0)

    def look(self, beats: Mapping[int, Beat], seconds: float) -> Verdict | None:
        """`beats` as they are now, a rank that has never been heard of missing; `seconds` since the last look."""
        if all(beat.count == 0 for beat in beats.values()):
            return None  # nobody says what it does, so nobody can be late
        for rank in self._ranks:
            new, old = beats.get(rank), self._seen.get(rank)
            for clock, is_same in (
                (self._silent_s, _serial(new) == _serial(old)),
                (self._still_s, _count(new) == _count(old)),
            ):
                clock[rank] = clock[rank] + seconds if is_same else 0.0
            if new is not None:
                self._seen[rank] = new
        return self._silence(self._limit_s) or (self._standstill() if self._are_all else None)

    def _silence(self, limit_s: float) -> Verdict | None:
        silent = [rank for rank in self._ranks if self._silent_s[rank] > limit_s]
        if not silent:
            return None
        first = self._seen.get(silent[0])
        last = f"it was last at {first.what!r}" if first else "it was never heard of"
        words = (
            f"{self._names(silent)} hang{'s' * (len(silent) == 1)}: no sign of life for "
            f"{self._silent_s[silent[0]]:.0f} s, {last}; the process stands still as a whole, or its node is lost"
        )
        return Verdict(words, tuple(silent), True)

    def _standstill(self) -> Verdict | None:
        least = min(_count(self._seen.get(rank)) for rank in self._ranks)
        behind = [rank for rank in self._ranks if _count(self._seen.get(rank)) == least]
        late = [rank for rank in behind if self._still_s[rank] > self._limit_s * _patience(self._seen.get(rank))]
        if not late:
            return None
        # Whoever stands still as a whole is the culprit, and may not have been silent for quite as long.
        if silence := self._silence(self._limit_s / 2):
            return silence
        seconds = f"for {max(self._still_s[rank] for rank in late):.0f} s"
        where = repr(_what(self._seen.get(late[0])))
        if len(self._ranks) == 1:
            return Verdict(f"{self._names(behind)} hangs at {where} {seconds}; its stack follows", (0,), False)
        if len(behind) == len(self._ranks):
            words = f"all {len(behind)} ranks hang at {where} {seconds}, none behind the others; their stacks follow"
            return Verdict(words, tuple(behind), False)
        ahead = next(rank for rank in self._ranks if rank not in behind)
        words = f"{self._names(behind)} hang{'s' * (len(behind) == 1)} at {where} {seconds}; the others wait at "
        return Verdict(words + repr(_what(self._seen.get(ahead))), tuple(behind), False)

    def _names(self, ranks: Sequence[int]) -> str:
        beats = [(rank, self._seen.get(rank)) for rank in ranks[:8]]
        names = ", ".join(f"rank {rank} on {beat.process['host'] if beat else '?'}" for rank, beat in beats)
        return names + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


class Pace:
    """Finds ranks that take longer than the others over what is their own; they hold up all."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._then: dict[int, Beat] = {}
        self._time = 0.0
        self._slow: dict[int, int] = {}

    def look(self, beats: Mapping[int, Beat], now: float) -> list[str]:
        """A line for each rank that has been slow for some time."""
        if len(beats) < self._ranks:
            return []
        if not self._then:
            if min(beat.rounds for beat in beats.values()):  # the first step is like no other
                self._then, self._time = dict(beats), now
            return []
        steps = {rank: beat.rounds - self._then[rank].rounds for rank, beat in beats.items()}
        if min(steps.values()) < EVERY_STEPS:
            return []
        own = {rank: (beats[rank].own_s - self._then[rank].own_s) / steps[rank] for rank in beats}
        step_s = (now - self._time) / min(steps.values())
        usual = median_low(own.values())
        slow = {rank for rank, s in own.items() if s > TIMES * usual and s - usual > SHARE * step_s}
        self._slow = {rank: self._slow.get(rank, 0) + 1 for rank in slow}
        self._then, self._time = dict(beats), now
        return [
            f"rank {rank} on {beats[rank].process['host']} is slow: {own[rank]:.3g} s a step before it first meets the "
            f"others, whose median is {usual:.3g} s, of steps of {step_s:.3g} s, in the last {times} intervals of "
            f"{EVERY_STEPS} steps or more"
            for rank, times in sorted(self._slow.items())
            if times % IN_A_ROW == 0
        ]


def _serial(beat: Beat | None) -> int:
    return beat.serial if beat else 0


def _count(beat: Beat | None) -> int:
    return beat.count if beat else 0


def _what(beat: Beat | None) -> str:
    return beat.what if beat else "starting"


def _patience(beat: Beat | None) -> float:
    return beat.patience if beat else PATIENCE
