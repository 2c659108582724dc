"""How uvicorn listens: one place for its settings, and a limit that it lacks, the time a request's head may take.

uvicorn waits for ever for the end of a head. A client that sends one byte by byte, or nothing at all, would keep its
place, and a few hundred of them all places there are.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 15.0


class _Patient(H11Protocol):
    """Closes a connection whose next request is not there, up to its body, within `head_s` of its first byte."""

    head_s = HEAD_S
    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        if self._is_between():
            self._expect()
        super().data_received(data)
        if not self._is_between():
            self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _is_between(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _expect(self) -> None:
        if self._limit is None:
            self._limit = self.loop.call_later(self.head_s, self.transport.close)

    def _forget(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


def listening(app: ASGIApp, *, waiting: int, head_s: float = HEAD_S, **more: Any) -> uvicorn.Config:
    """uvicorn's settings for an application that lets so many requests wait."""
    protocol = type("Patient", (_Patient,), {"head_s": head_s})
    return uvicorn.Config(
        app, http=protocol, ws="none", access_log=False, timeout_keep_alive=30, limit_concurrency=waiting * 4 + 64,
        server_header=False, **more,
    )  # fmt: skip
