"""A local OpenAI-compatible server for tests: it answers well, badly, late or never, as each request's plan says.

What a good answer holds depends on the request's body alone. Plans are lists of faults, one a try; after them the
answer is good. The server counts what it was asked and what it has answered.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import io
import json
import math
import random
import socket
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Plan = Callable[[dict], list[str]]
FAULTS = (
    "500", "503 with the key", "429", "408", "not json", "half json", "no choices", "null", "deep json", "truncated",
    "truncated chunks", "reset", "huge", "late", "drip", "odd usage", "200 empty",
    "202 empty", "204 empty",
)  # fmt: skip


def good_plan(request: dict) -> list[str]:
    return []


def flaky_plan(request: dict) -> list[str]:
    """Up to three faults, the same for a request each time; forty requests meet every kind."""
    start = request.get("seed", sum(json.dumps(request).encode()))
    return [FAULTS[(3 * start + n) % len(FAULTS)] for n in range(start % 4)]


class ChatServer:
    """Counts, and the threads behind them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.lock = threading.Lock()
        self.requests = 0
        self.tries: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.tokens = self.characters = 0
        self.flying = self.most_flying = 0
        self.keys: set[str | None] = set()
        self.pause_s = 0.0
        self.reply: Callable[[dict], str] = dialogue_for
        self.sound: Callable[[dict], bytes] = lambda request: tone(request["input"], request["voice"])
        self.on_request: Callable[[int], None] = lambda number: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                outer.serve(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        request = json.loads(body)
        name = hashlib.sha256(body).hexdigest()
        with self.lock:
            self.requests += 1
            number = self.requests
            self.flying += 1
            self.most_flying = max(self.most_flying, self.flying)
            self.keys.add(handler.headers.get("Authorization"))
            count = self.tries[name]
            self.tries[name] += 1
        self.on_request(number)
        try:
            time.sleep(self.pause_s)
            plan = self.plan(request)
            fault = plan[count] if count < len(plan) else "good"
            with contextlib.suppress(OSError):
                self.answer(handler, request, name, fault)
        finally:
            with self.lock:
                self.flying -= 1

    def answer(self, handler: BaseHTTPRequestHandler, request: dict, name: str, fault: str) -> None:
        key = handler.headers.get("Authorization", "Bearer none").removeprefix("Bearer ")
        usage = {"prompt_tokens": 50, "completion_tokens": 100}
        text = self.reply(request) if "messages" in request else ""
        good = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
        if fault in ("good", "odd usage") and handler.path.endswith("/audio/speech"):
            with self.lock:
                self.answered[name] += 1
                self.characters += len(request["input"])
            return self.send(handler, 200, self.sound(request))
        if fault == "good":
            with self.lock:
                self.answered[name] += 1
                self.tokens += 150
            return self.send(handler, 200, json.dumps(good))
        if fault == "too much":
            good["usage"] = {"prompt_tokens": 50, "completion_tokens": 301}
            return self.send(handler, 200, json.dumps(good))
        if fault == "odd usage":
            good["usage"] = {"prompt_tokens": -3, "completion_tokens": "many"}
            with self.lock:
                self.answered[name] += 1
            return self.send(handler, 200, json.dumps(good))
        if fault.split()[0].isdigit():
            wrong = f"bad key {key}: Authorization: Bearer {key}" if "key" in fault else "try later"
            wrong = "" if "empty" in fault else wrong
            return self.send(handler, int(fault.split()[0]), wrong, {"Retry-After": "0"} if fault == "429" else {})
        bodies = {
            "not json": f"<html>{key}</html>", "half json": json.dumps(good)[:40], "no choices": '{"choices": []}',
            "null": "null", "deep json": "[" * 100_000, "huge": "x" * 300_000,
        }  # fmt: skip
        if fault in bodies:
            return self.send(handler, 200, bodies[fault])
        handler.close_connection = True
        if fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            handler.connection.close()
        elif fault == "truncated":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + json.dumps(good).encode())
        elif fault == "truncated chunks":
            handler.wfile.write(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n" + json.dumps(good).encode()[:30]
            )
        elif fault == "late":
            time.sleep(2.0)
        elif fault == "drip":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
            for _ in range(20):
                handler.wfile.write(b" ")
                time.sleep(0.1)
        else:
            raise AssertionError(fault)

    def send(
        self, handler: BaseHTTPRequestHandler, status: int, body: str | bytes, headers: dict[str, str] | None = None
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def tone(text: str, voice: str) -> bytes:
    """A WAV as long as the text takes, of a pitch that is the voice's; stdlib only."""
    rate, seconds = 16000, 0.4 * len(text.split())
    pitch = 100 + sum(voice.encode()) % 200
    turn = 2 * math.pi / rate
    second = array.array("h", (int(9000 * math.sin(4 * turn * n) * math.sin(pitch * turn * n)) for n in range(rate)))
    samples = (second * math.ceil(seconds))[: int(rate * seconds)]
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return file.getvalue()


@contextlib.contextmanager
def chat_server(plan: Plan = good_plan) -> Iterator[ChatServer]:
    server = ChatServer(plan)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


WORDS = (
    "the river bank old bridge morning light quiet street garden summer paper window yellow letter train station "
    "mountain road winter market music kitchen small harbour wooden table teacher story forest evening silver"
).split()


def dialogue_for(request: dict) -> str:
    """A dialogue as a model gives it, in a fence; different for every request."""
    draw = random.Random(json.dumps(request, sort_keys=True))

    def sentence() -> str:
        return f"I think that the {' '.join(draw.choices(WORDS, k=8))} is what you want to know about."

    prompt = request["messages"][-1]["content"]
    exchanges = int(prompt.split(" exchanges")[0].split()[-1])
    turns = [{"role": role, "text": sentence()} for _ in range(exchanges) for role in ("user", "assistant")]
    if "cuts in" in prompt:
        turns[1]["interrupted"] = True
    return f"Here you are:\n```json\n{json.dumps({'turns': turns})}\n```"
