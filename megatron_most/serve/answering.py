"""One answer as it comes: tokens from the model's thread become pieces of text and of sound, in order.

Text is told when it is whole characters. The units of an audio span go to the vocoder, in a thread of its own, while
the model is still writing it.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from megatron_most.generate import Prompt
from megatron_most.serve.asked import Asked
from megatron_most.serve.batches import Batches, Job
from megatron_most.serve.partner import Partner, Wave
from megatron_most.vocab import TEXT


@dataclass(frozen=True)
class Token:
    """What came, and what whole characters it adds to the text."""

    id: int | None
    """None: no token has come; the text is what was held back of those before."""
    tag: int
    text: str


@dataclass(frozen=True)
class Sound:
    """A piece of the spoken answer."""

    wave: Wave


@dataclass(frozen=True)
class End:
    """eos, length."""

    why: str


Event = Token | Sound | End


class Late(Exception):
    """No token came for too long; the message says so to the client."""


class Answering:
    """`async for event in Answering(...)`; close it in any case, for nobody may listen any more."""

    def __init__(
        self, prompt: Prompt, asked: Asked, partner: Partner, batches: Batches, voices: Executor, patience_s: float
    ) -> None:
        """Busy where too many wait. `patience_s`: without a token for so long: Late."""
        self._partner, self._asked, self._voices, self._patience_s = partner, asked, voices, patience_s
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, int] | Sound | End | Exception] = asyncio.Queue()
        self._text = _Text(partner)
        self._span: queue.SimpleQueue[int | None] | None = None
        self._speaking: list[Future[None]] = []
        self._job = Job(prompt, asked.settings, lambda id, tag: self._post((id, tag)), self._on_end)
        batches.add(self._job)

    def close(self) -> None:
        """The model and the vocoder stop at once."""
        self._job.cancelled.set()
        self._end_span()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            try:
                async with asyncio.timeout(self._patience_s):
                    event = await self._events.get()
            except TimeoutError:
                words = f"no token came for {self._patience_s:g} s; try again when the server has less to do"
                raise Late(words) from None
            if isinstance(event, Exception):
                raise event
            if isinstance(event, tuple):
                yield self._token(*event)
            elif isinstance(event, Sound):
                yield event
            else:
                async for sound in self._rest_of_speech():
                    yield sound
                if left := self._text.rest():
                    yield Token(None, TEXT, left)
                yield event
                return

    def _post(self, event: tuple[int, int] | Sound | End | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _on_end(self, why: str | Exception) -> None:
        self._post(why if isinstance(why, Exception) else End(why))

    def _token(self, id: int, tag: int) -> Token:
        tokens = self._partner.tokens
        if id == tokens.begin_audio_id and self._asked.voice:
            self._span = queue.SimpleQueue()
            self._speaking.append(self._voices.submit(self._speak, self._span))
        elif id == tokens.end_audio_id:
            self._end_span()
        elif id in tokens.unit_ids and self._span is not None:
            self._span.put(tokens.unit_of_id(id))
        is_words = tag == TEXT and id not in (tokens.eos_id, tokens.bos_id)
        return Token(id, tag, self._text.add(id) if is_words else "")

    def _end_span(self) -> None:
        if self._span is not None:
            self._span.put(None)
            self._span = None

    def _speak(self, span: queue.SimpleQueue[int | None]) -> None:
        try:
            for wave in self._partner.speak(_until_none(span), self._asked.voice):
                if self._job.cancelled.is_set():
                    return
                self._post(Sound(wave))
        except Exception as error:
            self._post(error)

    async def _rest_of_speech(self) -> AsyncIterator[Sound]:
        self._end_span()
        for future in self._speaking:
            await asyncio.wrap_future(future)
        await asyncio.sleep(0)  # what was posted before the thread ended is in the queue after this turn of the loop
        while not self._events.empty():
            event = self._events.get_nowait()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Sound):
                yield event


def _until_none(span: queue.SimpleQueue[int | None]) -> Iterator[int]:
    while (unit := span.get()) is not None:
        yield unit


class _Text:
    """The text so far, told in whole characters: a token may hold a part of one."""

    def __init__(self, partner: Partner) -> None:
        self._partner = partner
        self._ids: list[int] = []
        self._told = ""

    def add(self, id: int) -> str:
        self._ids.append(id)
        text = self._partner.text(self._ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self._told):
            return ""
        return self._tell(text)

    def rest(self) -> str:
        """What was held back, once nothing more comes."""
        return self._tell(self._partner.text(self._ids)) if self._ids else ""

    def _tell(self, text: str) -> str:
        new, self._told = text[len(self._told) :], text
        return new
