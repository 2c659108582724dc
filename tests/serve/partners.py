"""A partner without a model, whose answers are known; and a server of it in this process."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import uvicorn

from megatron_most.errors import DataError
from megatron_most.generate import Answer, Prompt, Settings
from megatron_most.serve import Protection, Turn, make_app
from megatron_most.serve.listening import HEAD_S, listening
from megatron_most.vocab import TAG_NAMES, tiny_token_map


class Parrot:
    """Says the last turn's words again, a letter a token, then, where it may speak, as many units as there are words.

    A wave is "heard" as its length; "boom" breaks the model, "slow" makes it wait before each token.
    """

    def __init__(self, *, hears: bool = True, voices: Sequence[str] = ("anna", "bert")) -> None:
        self.name, self.tokens = "parrot", tiny_token_map(256, 40)
        self.sample_rate, self.voices = 16000, voices
        self.why_deaf = "" if hears else "this server was started without a codec"
        self.batches: list[int] = []
        self.cancelled = 0

    def prompt(self, turns: Sequence[Turn]) -> Prompt:
        words = []
        for part in turns[-1].parts:
            if isinstance(part, str):
                words.append(part)
            elif isinstance(part, tuple):
                words.append("units " + " ".join(map(str, part)))
            else:
                words.append(f"{len(part) / self.sample_rate:.2f} s")
        text = " and ".join(words)
        if not text.isascii():
            raise DataError("not English; say it in English")
        return Prompt.of([self.tokens.bos_id, *(ord(c) for c in text)], self.tokens)

    def answer(
        self,
        prompts: Sequence[Prompt],
        settings: Sequence[Settings],
        on_token: Callable[[int, int, int], None],
        is_cancelled: Callable[[int], bool],
    ) -> list[Answer]:
        self.batches.append(len(prompts))
        lines = [self._line(prompt, asked) for prompt, asked in zip(prompts, settings, strict=True)]
        texts = ["".join(map(chr, prompt.ids[1:])) for prompt in prompts]
        if any("boom" in text for text in texts):
            raise RuntimeError("the model is broken")
        answers = [Answer([], [], [], "length", 0.0) for _ in prompts]
        live = set(range(len(prompts)))
        for place in range(max(map(len, lines))):
            if any("slow" in texts[row] for row in live):
                time.sleep(0.02)
            for row in sorted(live):
                if is_cancelled(row):
                    self.cancelled += 1
                    answers[row] = replace(answers[row], stopped="cancelled")
                    live.discard(row)
                    continue
                id = lines[row][place]
                answers[row].ids.append(id)
                on_token(row, id, self.tokens.tag_of(id))
                if id == self.tokens.eos_id:
                    answers[row] = replace(answers[row], stopped="eos")
                if place + 1 == len(lines[row]):
                    live.discard(row)
        return answers

    def text(self, ids: Sequence[int]) -> str:
        return bytes(id for id in ids if id < 128).decode()

    def speak(self, units: Iterable[int], voice: str) -> Iterator[np.ndarray]:
        for unit in units:
            yield np.full(100, (unit + 1) / 100 * (1 if voice == "anna" else -1), np.float32)

    def group(self, tag: int) -> str:
        return (*TAG_NAMES[:2], "shared")[tag]

    def _line(self, prompt: Prompt, asked: Settings) -> list[int]:
        tokens, line = self.tokens, list(prompt.ids[1:])
        if asked.mode == "free":
            num = len("".join(map(chr, line)).split())
            line += [tokens.begin_audio_id, *(tokens.id_of_unit(n) for n in range(num)), tokens.end_audio_id]
        return [*line, tokens.eos_id][: asked.max_new_tokens]


class Server:
    """`ask` and friends against a running server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self, source: str = "127.0.0.1") -> http.client.HTTPConnection:
        """As a client of this address of the loopback."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30, source_address=(source, 0))

    def send(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = self.connect()
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()
        finally:
            connection.close()

    def ask(self, content: Any, **more: Any) -> tuple[int, Any]:
        """One message of the user; the status and the JSON that came."""
        body = {"messages": [{"role": "user", "content": content}], **more}
        status, _, answer = self.post(body)
        return status, json.loads(answer)

    def post(self, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", "/v1/chat/completions", content, **{"Content_Type": "application/json", **headers})

    def stream(self, content: Any, **more: Any) -> list[Any]:
        """The events of a stream; the last is the text [DONE]."""
        body = {"messages": [{"role": "user", "content": content}], "stream": True, **more}
        status, _, answer = self.post(body)
        assert status == 200, answer
        lines = [event.removeprefix("data: ") for event in answer.decode().split("\n\n") if event]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@contextlib.contextmanager
def serving(partner: Any, **protection: Any) -> Iterator[Server]:
    """A server of this partner on a free port, ended afterwards."""
    head_s = protection.pop("head_s", HEAD_S)
    protected = Protection(**{"requests_a_minute": 100_000, **protection})
    app = make_app(partner, protected)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = listening(app, waiting=protected.waiting, head_s=head_s, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Server(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
        assert not thread.is_alive()
