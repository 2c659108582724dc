"""The application: /v1/chat/completions and /v1/models as OpenAI's clients know them, /health, and one page to talk.

A request that is left by its client stops at the next token. The page and its files are the only ones that are served;
no other origin may read an answer, and a browser cannot be made to ask for one: bodies must be declared as JSON, and a
server on the loopback takes only requests that name it so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from megatron_most.errors import MostError
from megatron_most.runtime import get_logger
from megatron_most.serve.answering import Answering, End, Late, Sound, Token
from megatron_most.serve.asked import Asked, Limits, Refused, has_sound, read_request
from megatron_most.serve.batches import Batches, Busy
from megatron_most.serve.chunks import Chat
from megatron_most.serve.limits import Guard, Rate, refusal
from megatron_most.serve.partner import Partner

_log = get_logger(__name__)
_PAGES = Path(__file__).with_name("pages")
_FILES = {
    "/": ("talk.html", "text/html"),
    "/talk.js": ("talk.js", "text/javascript"),
    "/talk.css": ("talk.css", "text/css"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob: data:; img-src data:"
)


@dataclass(frozen=True)
class Protection:
    """How much the server lets itself be asked."""

    limits: Limits = field(default_factory=Limits)
    body_bytes: int = 16 << 20
    body_s: float = 30.0
    requests_a_minute: int = 120
    """From one address."""
    rows: int = 8
    """Answers that are generated together."""
    waiting: int = 128
    patience_s: float = 120.0
    """Without a token for so long a request is given up."""
    key: str = ""
    """What requests must carry as a bearer's token; none: nothing."""
    hosts: Sequence[str] = ()
    """Names by which the server may be asked; none: by any."""


def make_app(partner: Partner, protection: Protection | None = None) -> Starlette:
    """An application that answers with this partner until it is shut down."""
    server = _Server(partner, protection or Protection())
    guard = Middleware(
        Guard,
        body_bytes=server.protection.body_bytes,
        body_s=server.protection.body_s,
        rate=Rate(server.protection.requests_a_minute),
    )
    return Starlette(
        routes=[
            *(Route(path, server.page) for path in _FILES),
            Route("/health", server.health),
            Route("/v1/models", server.models),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
        ],
        middleware=[guard],
        lifespan=server.lifespan,
        exception_handlers={HTTPException: _http_error, Refused: _refused, Exception: _own_fault},
    )


class _Server:
    def __init__(self, partner: Partner, protection: Protection) -> None:
        self.partner, self.protection = partner, protection
        self._batches = Batches(partner, rows=protection.rows, waiting=protection.waiting)
        self._voices = ThreadPoolExecutor(protection.rows * 2, "voice")
        self._hearing, self._reading = asyncio.Semaphore(4), asyncio.Semaphore(4)  # requests with sound, and without

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        with self._batches:
            yield
        self._voices.shutdown(wait=False, cancel_futures=True)

    async def page(self, request: Request) -> Response:
        self._require_host(request)
        name, kind = _FILES[request.url.path]
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return Response((_PAGES / name).read_bytes(), media_type=kind, headers=headers)

    async def health(self, request: Request) -> Response:
        running, waiting = self._batches.load
        return JSONResponse({"status": "ok", "answering": running, "waiting": waiting})

    async def models(self, request: Request) -> Response:
        self._require_host(request)
        self._require_key(request)
        model = {"id": self.partner.name, "object": "model", "created": 0, "owned_by": "local"}
        most = {
            "hears": not self.partner.why_deaf,
            "voices": list(self.partner.voices),
            "sample_rate": self.partner.sample_rate,
            "max_tokens": self.protection.limits.max_tokens,
            "audio_s": self.protection.limits.audio_s,
            "body_bytes": self.protection.body_bytes,
        }
        return JSONResponse({"object": "list", "data": [{**model, "most": most}]})

    async def chat(self, request: Request) -> Response:
        self._require_host(request)
        self._require_key(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "send the body as application/json")
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not JSON") from None
        # Decoding recordings and finding their units takes a while, and who sends text does not wait for it.
        async with self._hearing if has_sound(body) else self._reading:
            asked = await asyncio.to_thread(read_request, body, self.partner, self.protection.limits)
            try:
                prompt = await asyncio.to_thread(self.partner.prompt, asked.turns)
            except MostError as error:
                raise Refused(400, f"messages: {error}", "messages") from None
        try:
            answering = Answering(prompt, asked, self.partner, self._batches, self._voices, self.protection.patience_s)
        except Busy:
            raise Refused(503, "too many requests are waiting; try again soon", retry_s=5) from None
        chat = Chat(self.partner, len(prompt.ids), asked.usage_apart)
        if asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(_stream(answering, chat), media_type="text/event-stream", headers=headers)
        return await self._whole(request, asked, answering, chat)

    async def _whole(self, request: Request, asked: Asked, answering: Answering, chat: Chat) -> Response:
        gone = asyncio.create_task(_until_gone(request))
        answer = asyncio.create_task(_collect(answering, chat))
        try:
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=499)  # nobody reads it
            try:
                texts, waves, tokens, why = await answer
            except Late as error:
                raise Refused(503, str(error), retry_s=5) from None
        finally:
            answering.close()
            gone.cancel()
            answer.cancel()
        wave = np.concatenate(waves) if waves else np.zeros(0, np.float32) if asked.voice else None
        return JSONResponse(chat.whole("".join(texts), wave, asked.audio_format, tokens, why))

    def _require_host(self, request: Request) -> None:
        host = re.sub(r":\d+$", "", request.headers.get("host", "")).lower()
        if self.protection.hosts and host not in self.protection.hosts:
            raise Refused(421, f"this server is not {host[:100]!r}")

    def _require_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self.protection.key and not secrets.compare_digest(given.encode(), f"Bearer {self.protection.key}".encode()):
            raise Refused(401, "the key is missing or wrong: send it as Authorization: Bearer KEY")


async def _stream(answering: Answering, chat: Chat) -> AsyncIterator[bytes]:
    try:
        yield chat.begin()
        async for event in answering:
            if isinstance(event, Token):
                chat.count(event)
                yield chat.token(event)
            elif isinstance(event, Sound):
                yield chat.sound(event.wave)
            else:
                yield chat.end(event.why)
    except Exception as error:  # the status is sent already
        _log.error("an answer failed: %s", error)
        yield f"data: {json.dumps(_failed(error))}\n\n".encode()
    finally:
        answering.close()


async def _collect(answering: Answering, chat: Chat) -> tuple[list[str], list[np.ndarray], list[Token], str]:
    texts: list[str] = []
    waves: list[np.ndarray] = []
    tokens: list[Token] = []
    async for event in answering:
        if isinstance(event, Token):
            chat.count(event)
            texts.append(event.text)
            tokens += [event] if event.id is not None else []
        elif isinstance(event, Sound):
            waves.append(event.wave)
        elif isinstance(event, End):
            return texts, waves, tokens, event.why
    raise AssertionError("an answer ends with an End, or raises")


async def _until_gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


def _failed(error: Exception) -> dict[str, Any]:
    if isinstance(error, Late):
        return Refused(503, str(error)).body()
    words = str(error) if isinstance(error, MostError) else "the answer could not be made; the server's log says why"
    return {"error": {"message": words, "type": "server_error", "param": None, "code": None}}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(Refused(error.status_code, f"{request.method} {request.url.path[:100]}: {error.detail.lower()}"))


async def _own_fault(request: Request, error: Exception) -> Response:
    return JSONResponse(_failed(error), status_code=500)
