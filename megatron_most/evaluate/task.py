"""What an evaluation is: numbered items, a record for each, and scores of all records.

The job (job.py) shares items out to ranks, keeps records and goes on after a kill; a task knows nothing of that. It
says what decides its records (`about`), so that work under other settings is never continued. An item that cannot be
evaluated gets a record with a fault, and the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from megatron_most.score import Score

Record = dict[str, Any]
"""Plain JSON values: "id", what was found, or "fault" and "detail"."""


@dataclass(frozen=True)
class Fault:
    """Why an item cannot be evaluated: `reason` is one of few fixed strings, `detail` says what was found."""

    reason: str
    detail: str = ""

    def record(self, id: str) -> Record:
        return {"id": id, "fault": self.reason, "detail": self.detail}


@dataclass(frozen=True, kw_only=True)
class About:
    """What decides a task's records. All of it is plain JSON values."""

    data: Mapping[str, Any]
    """What was evaluated on; "hash" names its content, sounds apart: those are named beside it."""
    config: Mapping[str, Any]
    """How: settings, templates, judges, normalisers, seeds."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What all records come to."""

    scores: Mapping[str, Score]
    """The first one is the task's own."""
    parts: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    """Breakdowns: what by -> which -> score."""
    records: Sequence[Record] = ()
    """The records with what was counted in each."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> content of files beside the result: submissions, and the like."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Other facts to be kept."""


class Task(Protocol):
    """One evaluation on one data set."""

    @property
    def name(self) -> str:
        """What it is and on what: "asr/librispeech/test-clean"."""
        ...

    @property
    def about(self) -> About: ...

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def id(self, number: int) -> str: ...

    def sounds(self, number: int) -> Sequence[Path]:
        """The sound files that decide its record, whether they are there or not."""
        ...

    def run(self, numbers: Sequence[int]) -> list[Record]:
        """A record for each of some items, the same whatever else is in the batch."""
        ...

    def score(self, records: Sequence[Record], seed: int) -> Scored:
        """Of all items in their order, those with a fault left out; `seed` is the bootstrap's."""
        ...
