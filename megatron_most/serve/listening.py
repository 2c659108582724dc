"""How uvicorn listens: one place for its settings, and two limits that it lacks: the time that a request's head may
take, and the share of all connections that one address may hold.

uvicorn waits for ever for the end of a head, and counts all connections together. A client that sends heads byte by
byte, or nothing at all, would keep its places, and a few hundred of them all places there are.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from megatron_most.serve.asked import Refused
from megatron_most.serve.limits import refusal

HEAD_S = 15.0
STALE_S = 1.0
"""After so long without a head a connection makes room for another of its address, where those are too many."""


class _Patient(H11Protocol):
    """Closes a connection whose next request is not there, up to its body, within `head_s` of its first byte.

    An address that has its `share` loses the first of its connections that is stale. Where none is, the new one is told
    so and takes no place, for a burst of requests arrives as connections first, and each is owed an answer.
    """

    head_s = HEAD_S
    share: int
    of_address: defaultdict[str, dict[_Patient, None]]
    """In the order they came."""
    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        mates = self.of_address[self._address]
        if len(mates) >= self.share and (stale := next((mate for mate in mates if mate._is_stale()), None)):
            stale._leave()
            stale.transport.close()
        if len(self.of_address[self._address]) < self.share:
            self.of_address[self._address][self] = None
        else:
            self._refuse()
        self._expect()

    def data_received(self, data: bytes) -> None:
        if self._is_between():
            self._expect()
        super().data_received(data)
        if not self._is_between():
            self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._leave()
        super().connection_lost(exc)

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _leave(self) -> None:
        mates = self.of_address[self._address]
        mates.pop(self, None)
        if not mates:
            del self.of_address[self._address]

    def _refuse(self) -> None:
        words = f"there are {self.share} connections of one address; close some, or try again soon"
        answer = refusal(Refused(503, words, retry_s=5))
        answer.headers["Connection"] = "close"
        self.app = answer
        self.connections.discard(self)  # others are not refused because of it
        self.head_s = min(self.head_s, STALE_S)

    def _is_stale(self) -> bool:
        return self._limit is not None and self.loop.time() > self._limit.when() - self.head_s + STALE_S

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
    most = waiting * 4 + 64
    protocol = type("Patient", (_Patient,), {"head_s": head_s, "share": most // 4, "of_address": defaultdict(dict)})
    return uvicorn.Config(
        app, http=protocol, ws="none", access_log=False, timeout_keep_alive=30, limit_concurrency=most,
        server_header=False, **more,
    )  # fmt: skip
