"""The writer behind an OpenAI-compatible endpoint (vLLM and the like): requests in parallel, retried, paid for once.

Each brief is one request; its "seed" is the brief's number, so no two are alike. What may pass (a lost connection, 429,
5xx, an answer that is empty or no JSON) is tried again, after the pause the server asks for or one that doubles; what
cannot (a wrong key, an unknown model) ends the run; what concerns one request alone (400, a refusal) is that brief's
matter. The key comes from an environment variable and goes into one header, into no file, line or error.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError
from megatron_most.runtime import printable, read_file
from megatron_most.synthesize.answers import parse_draft
from megatron_most.synthesize.brief import Brief
from megatron_most.synthesize.http_post import Address, Answer, NoAnswer, checked_key, post, without_key
from megatron_most.synthesize.ledger import Cost, Ledger
from megatron_most.synthesize.phrases import PROMPTS
from megatron_most.synthesize.writer import Draft, WriterFailed

_NONSENSE = 1 << 40
PATH = "/chat/completions"
_PROMPTS = ("system", "dialogue", "rewrite", "interruption")
_TEMPLATE_TOKENS = 256
"""More than any chat template adds to two messages; with a token for each byte of them, no prompt is longer."""


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """Where dialogues are written, and how it is asked."""

    url: str | None = None
    """The service's base address, up to and with /v1."""
    model: str | None = None
    """The model, as the service names it."""
    key_env: str | None = None
    """NAME of the environment variable with the key; not set = no key is sent."""
    concurrency: int = 16
    """Requests at a time."""
    max_tokens: int = 1024
    """Of a reply."""
    temperature: float = 1.0
    timeout_s: float = 120.0
    """For a whole exchange."""
    tries: int = 6
    pause_s: float = 1.0
    """Before the second try; doubled each time, a random share up to half left out."""
    max_pause_s: float = 60.0
    """No pause is longer, whatever the server asks for."""
    max_answer_mib: float = 4.0
    json_mode: bool = True
    """Ask for a JSON object (response_format); switch it off where the service refuses that."""
    prompts: Path | None = None
    """What is asked, as TOML; not set = the package's."""

    def check(self) -> None:
        for name, least in (("concurrency", 1), ("max_tokens", 1), ("tries", 1), ("timeout_s", 1e-3), ("pause_s", 0.0),
                            ("max_pause_s", 0.0), ("max_answer_mib", 1e-3), ("temperature", 0.0)):  # fmt: skip
            value = getattr(self, name)
            if not least <= value < 1e9:
                raise DataError(f"--endpoint.{name.replace('_', '-')} {value}: give {least:g} or more")


class EndpointWriter:
    """Writes by asking; the ledger holds its budget and its replies."""

    def __init__(self, options: EndpointOptions, ledger: Ledger) -> None:
        options.check()
        if not options.url or not options.model:
            raise DataError("--writer endpoint: give --endpoint.url and --endpoint.model")
        self._options, self._ledger, self._model = options, ledger, options.model
        self._address = Address.parse(options.url)
        self._key = find_key(options.key_env, "--endpoint.key-env")
        self._prompts, self._hash = _load_prompts(options.prompts or PROMPTS / "writer.toml")
        self._stopped = threading.Event()
        self.concurrency = options.concurrency

    @property
    def identity(self) -> dict[str, Any]:
        """The address is not in it: the same model may move."""
        options = self._options
        return {
            "writer": "endpoint",
            "model": self._model,
            "prompts": self._hash,
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "json_mode": options.json_mode,
        }

    def stop(self) -> None:
        self._stopped.set()

    def told(self) -> str:
        return self._ledger.told()

    def write(self, brief: Brief) -> Draft:
        body, bound = self._request(brief)
        key = hashlib.sha256(body).hexdigest()
        reply = self._ledger.find(key)
        if reply is None:
            reply = self._ask(body, key, Cost(1, bound, self._options.max_tokens))
        if "refused" in reply:
            raise RowError("refused by the endpoint", reply["refused"])
        if reply["finish"] == "length":
            raise RowError("reply cut short", f"at {self._options.max_tokens} tokens (--endpoint.max-tokens)")
        if reply["finish"] == "content_filter" or not reply["content"].strip():
            raise RowError("empty reply", str(reply["finish"])[:40])
        return parse_draft(reply["content"])

    def _request(self, brief: Brief) -> tuple[bytes, int]:
        """The body, and a bound on its prompt's tokens."""
        messages = [
            {"role": "system", "content": self._prompts["system"].strip()},
            {"role": "user", "content": self._prompt(brief)},
        ]
        request: dict[str, Any] = {"model": self._model, "messages": messages, "seed": brief.number}
        request |= {"max_tokens": self._options.max_tokens, "temperature": self._options.temperature}
        if self._options.json_mode:
            request["response_format"] = {"type": "json_object"}
        bound = sum(len(message["content"].encode()) for message in messages) + _TEMPLATE_TOKENS
        return json.dumps(request, sort_keys=True).encode(), bound

    def _prompt(self, brief: Brief) -> str:
        cut = self._prompts["interruption"] if brief.interrupted is not None else ""
        values = {
            "exchanges": str(brief.exchanges),
            "words": str(brief.most_words),
            "topic": brief.topic.name if brief.topic else "",
            "persona": (brief.persona.name if brief.persona else "") or "somebody who likes to ask",
            "facts": "\n".join(f"- {fact.ask + ' ' if fact.ask else ''}{fact.say}" for fact in brief.facts),
            "chat": "\n".join(f"{role}: {text}" for role, text in brief.chat),
            "interruption": cut.replace("{number}", str((brief.interrupted or 0) + 1)).strip(),
        }
        prompt = self._prompts["rewrite" if brief.chat else "dialogue"]
        # One pass: what is filled in is never looked into for names again.
        return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), prompt).strip()

    def _ask(self, body: bytes, key: str, most: Cost) -> dict[str, Any]:
        """The reply, after as many tries as it takes and is allowed."""
        wrong = ""
        for number in range(self._options.tries):
            if self._stopped.is_set():
                raise WriterFailed("stopped")
            ticket = self._ledger.reserve(key, most, self._stopped)
            used, reply, pause = most, None, None  # the worst case, until it is known better
            try:
                used, reply, wrong, pause = self._try(body, most)
            finally:
                self._ledger.settle(ticket, key, used, reply)
            if reply is not None:
                return reply
            if number + 1 < self._options.tries:
                self._pause(number, pause)
        raise WriterFailed(f"{self._address}: {wrong}, the last of {self._options.tries} tries")

    def _try(self, body: bytes, most: Cost) -> tuple[Cost, dict[str, Any] | None, str, float | None]:
        """(what it has cost, the reply or None, what was wrong, the pause wanted)."""
        options = self._options
        most_bytes = int(options.max_answer_mib * (1 << 20))
        try:
            answer = post(self._address, PATH, body, self._key, timeout_s=options.timeout_s, most_bytes=most_bytes)
        except NoAnswer as error:
            return most if error.was_sent else Cost(1), None, str(error), None
        if answer.is_success:
            return self._read(answer, most)
        wrong = f"status {answer.status}{self._quoted(answer.body)}"
        if answer.may_pass:
            return Cost(1), None, wrong, answer.retry_after
        if answer.is_of_the_request:
            return Cost(1), {"refused": wrong}, wrong, None
        raise DataError(f"{self._address}{PATH}: {wrong}; {_remedy(answer.status, options.key_env)}")

    def _read(self, answer: Answer, most: Cost) -> tuple[Cost, dict[str, Any] | None, str, float | None]:
        if answer.is_empty:
            return most, None, f"status {answer.status} with nothing in it", answer.retry_after
        try:
            found = json.loads(answer.body)
            choice = found["choices"][0]
            content, finish = choice["message"].get("content"), choice.get("finish_reason")
            if not isinstance(content, str | None):
                raise TypeError
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            return most, None, f"an answer that is no completion{self._quoted(answer.body)}", None
        # Again, now that JSON's escapes are undone: they can spell the key in many ways.
        content, finish = (
            without_key(text.encode(errors="replace"), self._key).decode() for text in (content or "", str(finish))
        )
        return _used(found.get("usage"), most), {"content": content, "finish": finish[:40]}, "", None

    def _quoted(self, body: bytes) -> str:
        text = printable(without_key(body, self._key).decode(errors="replace"), 160).strip()
        return f" ({text})" if text else ""

    def _pause(self, number: int, wanted: float | None) -> None:
        options = self._options
        pause = wanted if wanted is not None else options.pause_s * 2**number * random.uniform(0.5, 1.0)
        self._stopped.wait(min(pause, options.max_pause_s))


def _used(usage: Any, most: Cost) -> Cost:
    """What the server says it took; the worst case where it does not say, or says nonsense."""
    if not isinstance(usage, dict):
        return most
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (type(prompt) is type(completion) is int) or not (0 <= prompt < _NONSENSE and 0 <= completion < _NONSENSE):
        return most
    used = Cost(1, prompt, completion)
    if used.prompt > most.prompt or used.completion > most.completion:
        raise DataError(
            f"the endpoint says it took {used.prompt} tokens of prompt and {used.completion} of reply where "
            f"{most.prompt} and {most.completion} were the most; no budget holds with such counts, use another service"
        )
    return used


def find_key(variable: str | None, option: str) -> str | None:
    """The key in an environment variable; None where none is named."""
    if variable is None:
        return None
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", variable) or variable.startswith(("sk_", "hf_")):
        raise DataError(f"{option}: not the name of an environment variable; never give the key itself")
    if variable not in os.environ:
        raise DataError(f"{option} {variable}: not set; export {variable} with the key first")
    return checked_key(os.environ[variable], variable)


def _load_prompts(path: Path) -> tuple[dict[str, str], str]:
    data = read_file(path, remedy="give a TOML file with --endpoint.prompts")
    try:
        found = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not TOML: {error}; correct it there") from error
    if set(found) != set(_PROMPTS) or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise DataError(f"{path}: not the texts {', '.join(_PROMPTS)}; give each of them, and no other")
    return found, hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _remedy(status: int, variable: str | None) -> str:
    if status in (401, 403):
        return f"check the key in ${variable}" if variable else "it wants a key: give --endpoint.key-env"
    if 300 <= status < 400:
        return "redirects are not followed, for they would carry the key along: give the address it leads to"
    return "check --endpoint.url (it ends in /v1, as a rule) and --endpoint.model"
