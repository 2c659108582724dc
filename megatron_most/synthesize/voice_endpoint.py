"""Text to speech behind an OpenAI-compatible service (/audio/speech): in parallel, retried, within a budget, paid once.

The ledger is that of the writer of dialogues; what it counts are characters. Waves that were paid for lie beside it, by
the hash of their request, so that neither a kill nor a sentence that comes again is paid for twice. The key comes from
an environment variable and goes into one header, into no file, line or error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError
from megatron_most.runtime import printable, write_atomically, writing
from megatron_most.speech import AudioError
from megatron_most.synthesize.endpoint import find_key
from megatron_most.synthesize.http_post import Address, NoAnswer, post
from megatron_most.synthesize.ledger import Budget, Cost, Ledger
from megatron_most.synthesize.voices import VoiceOptions, read_wave
from megatron_most.synthesize.writer import WriterFailed

WAVES = "waves"
_SPEECH = "/audio/speech"
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class VoiceBudget:
    """How much a service that speaks may be used, over all runs of this work together; not set = no limit."""

    requests: int | None = None
    characters: int | None = None
    """Of the texts that are spoken."""
    money: float | None = None
    """In the currency of the price."""
    price: float = 0.0
    """For a million characters."""

    def budget(self) -> Budget:
        """As the ledger has it, where tokens are characters."""
        for name in ("requests", "characters", "money", "price"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e15:
                raise DataError(f"--budget.{name} {value}: not an amount; give 0 or more")
        if self.money is not None and not self.price:
            raise DataError("--budget.money without a price: give --budget.price too")
        return Budget(requests=self.requests, tokens=self.characters, money=self.money, price_in=self.price)


class EndpointSpeaker:
    """Asks a service for each turn."""

    def __init__(self, options: VoiceOptions, ledger: Ledger) -> None:
        self._options, self._address = options, Address.parse(options.url or "", "--voice")
        self._key, self._stopped = find_key(options.key_env, "--voice.key-env"), threading.Event()
        self._ledger, self._waves = ledger, ledger.path.parent / WAVES
        with writing(self._waves):
            self._waves.mkdir(exist_ok=True)
        self._lock = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """The address is not in it: the same model may move."""
        return {"speaker": "endpoint", "model": self._options.model}

    def check_voices(self, voices: Sequence[str]) -> None:
        """The service knows them, and nobody else."""

    def stop(self) -> None:
        self._stopped.set()

    def told(self) -> str:
        return self._ledger.told()

    def say(self, text: str, voice: str) -> np.ndarray:
        request = {"model": self._options.model, "input": text, "voice": voice, "response_format": "wav"}
        body = json.dumps(request, sort_keys=True).encode()
        key = hashlib.sha256(body).hexdigest()
        with self._alone(key):  # the same words in the same voice, wanted twice at a time, are asked for once
            reply = self._ledger.find(key)
            if reply is None or ("wave" in reply and self._kept(key, reply) is None):
                reply = self._ask(body, key, text)
        if "refused" in reply:
            raise RowError("voice failed", reply["refused"])
        data = self._kept(key, reply)
        if data is None:
            raise DataError(f"{self._waves / f'{key}.wav'}: gone or changed meanwhile; run the same command again")
        try:
            return _decoded(data, text)
        except AudioError as error:  # it was sound when it was put there
            raise RowError("voice failed", error.reason) from error

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        with self._lock:
            lock = self._asking.setdefault(key, threading.Lock())
        with lock:
            yield

    def _kept(self, key: str, reply: dict[str, Any]) -> bytes | None:
        """The wave of a request that was answered; None where the file is gone or damaged: it is asked for again."""
        path = self._waves / f"{key}.wav"
        if not path.is_file():
            return None
        data = path.read_bytes()
        return data if hashlib.sha256(data).hexdigest() == reply["wave"] else None

    def _ask(self, body: bytes, key: str, text: str) -> dict[str, Any]:
        """The reply, after as many tries as it takes and is allowed."""
        wrong, most = "", Cost(1, len(text), 0)
        for number in range(self._options.tries):
            if self._stopped.is_set():
                raise WriterFailed("stopped")
            ticket = self._ledger.reserve(key, most, self._stopped)
            used, reply, pause = most, None, None  # the worst case, until it is known better
            try:
                used, reply, wrong, pause = self._try(body, key, text, most)
            finally:
                self._ledger.settle(ticket, key, used, reply)
            if reply is not None:
                return reply
            if number + 1 < self._options.tries:
                wait = self._options.pause_s * 2**number * random.uniform(0.5, 1.0) if pause is None else pause
                self._stopped.wait(min(wait, self._options.max_pause_s))
        raise WriterFailed(f"{self._address}: {wrong}, the last of {self._options.tries} tries")

    def _try(
        self, body: bytes, key: str, text: str, most: Cost
    ) -> tuple[Cost, dict[str, Any] | None, str, float | None]:
        """(what it has cost, the reply or None, what was wrong, the pause wanted)."""
        timeout_s = self._options.timeout_s
        try:
            answer = post(self._address, _SPEECH, body, self._key, timeout_s=timeout_s, most_bytes=_MOST_BYTES)
        except NoAnswer as error:
            return most if error.was_sent else Cost(1), None, str(error), None
        if not answer.is_success:
            wrong = f"status {answer.status}"
            if answer.is_of_the_request:
                return Cost(1), {"refused": wrong}, wrong, None
            if not answer.may_pass:
                raise DataError(f"{self._address}{_SPEECH}: {wrong}; check --voice.url, --voice.key-env and the model")
            return Cost(1), None, wrong, answer.retry_after
        if answer.is_empty:
            return most, None, f"status {answer.status} with nothing in it", answer.retry_after
        try:
            _decoded(answer.body, text)
        except AudioError as error:
            return most, None, f"an answer that is no sound ({error.reason})", None
        except RowError:
            pass  # too long: paid for like others, and kept so that it is not paid for again
        write_atomically(self._waves / f"{key}.wav", answer.body)
        return most, {"wave": hashlib.sha256(answer.body).hexdigest()}, "", None


def _decoded(body: bytes, text: str) -> np.ndarray:
    with tempfile.TemporaryDirectory(prefix="most-voice-") as folder:
        wave = Path(folder, "wave.wav")
        wave.write_bytes(body)
        try:
            return read_wave(wave, text)
        except AudioError as error:  # without the temporary file's name, which differs each time
            raise AudioError(error.reason, printable(error.detail.replace(str(wave), "its wave"), 160)) from None
