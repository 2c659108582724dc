"""Rows that cannot be used: each is written down with its id and reason, counted, and the run goes on.

A run stops when too many rows are bad, for then the fault is in the path or the options, not in the rows. The rate is
judged from the hundredth row on, and at the end. Rows left out by choice are listed too, but are no fault.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_most.errors import DataError

_JUDGED_FROM = 100
_BY_CHOICE = ("speaker in an evaluation split", "one modality only", "overlaps ")


class RowError(DataError):
    """One row of a corpus that cannot be used: `reason` is one of few fixed strings, `detail` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:  # errors travel between worker processes
        return type(self), (self.reason, self.detail)


class Rejects:
    """Counts bad rows by reason and passes a JSON line for each to `write`; `where` is the file they can be read in."""

    def __init__(
        self,
        write: Callable[[bytes], object],
        max_rate: float,
        counts: Mapping[str, int] | None = None,
        *,
        where: Path | str = "rejects.jsonl",
    ) -> None:
        if not 0 <= max_rate <= 1:
            raise DataError(f"--max-reject-rate {max_rate}: not a share of rows; give 0 to 1")
        self._write, self.max_rate, self._where = write, max_rate, where
        self.counts: Counter[str] = Counter(counts or {})
        self._first: dict[str, str] = {}

    def add(self, id: str, reason: str, detail: str = "") -> None:
        self.counts[reason] += 1
        self._first.setdefault(reason, f"{id}: {detail}" if detail else id)
        line = json.dumps({"id": id, "reason": reason, "detail": detail}, ensure_ascii=False)
        self._write(line.encode(errors="backslashreplace") + b"\n")  # a lone surrogate must not stop the report

    @property
    def total(self) -> int:
        return self.counts.total()

    def check(self, done: int, at_end: bool = False) -> None:
        """Raise where more than `max_rate` of the `done` rows, good and bad, were rejected."""
        faults = Counter({reason: n for reason, n in self.counts.items() if not reason.startswith(_BY_CHOICE)})
        bad = faults.total()
        if not bad or (done < _JUDGED_FROM and not at_end):
            return
        if bad > self.max_rate * done:
            [(most, _)] = faults.most_common(1)
            first = f"the first {most!r} is {self._first[most][:300]}; " if most in self._first else ""
            raise DataError(
                f"{bad} of {done} rows rejected ({self}), more than the rate of {self.max_rate:g} allows; {first}"
                f"look at {self._where}, or raise --max-reject-rate"
            )

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common()) or "none"


def told(counts: Mapping[str, int], where: Path | str) -> str:
    """How many rows were rejected or left out, and where they are listed: the end of a step's last line."""
    left_out = sum(count for reason, count in counts.items() if reason.startswith(_BY_CHOICE))
    words = f"{sum(counts.values()) - left_out} rejected" + (f", {left_out} left out by choice" if left_out else "")
    return f"{words}, listed in {where}" if counts else words
