"""What a writer is: briefs in, drafts out. Two are built in, an offline grammar and a language model's endpoint.

`write` is called from several threads, as many as `concurrency` says. It raises RowError where this brief comes to
nothing, WriterFailed where the writer could not be had (the brief may succeed later), and DataError where no brief can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from megatron_most.synthesize.brief import Brief


@dataclass(frozen=True, slots=True)
class DraftTurn:
    """A turn as its writer gave it: not yet speakable."""

    role: str
    text: str
    interrupted: bool = False


Draft = tuple[DraftTurn, ...]


class WriterFailed(Exception):
    """Tried as often as allowed, without a reply; says what came back the last time."""


class JudgeFailed(WriterFailed):
    """The judge of speech has broken down: it is not these waves that it cannot hear."""


class Writer(Protocol):
    """A source of drafts."""

    concurrency: int

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its drafts; work begun by one identity is not continued by another."""

    def write(self, brief: Brief) -> Draft: ...

    def stop(self) -> None:
        """Nobody waits for drafts any more: end pauses at once, let what was sent come back."""

    def told(self) -> str:
        """What was used so far, in words; "" where nothing is paid for."""
