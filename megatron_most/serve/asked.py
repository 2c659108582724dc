"""From the JSON of a request to what is asked: the part of OpenAI's chat completions that a speech-text model has.

What is not understood is refused by name rather than passed over: an answer that ignores half of what was asked for is
worse than none. `Refused` is HTTP's 4xx, in OpenAI's form.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_most.errors import MostError
from megatron_most.generate import Settings, is_finite
from megatron_most.serve.partner import Part, Partner, Turn, Wave
from megatron_most.speech import AudioError, probe, read_span

_ROLES = ("system", "user", "assistant")
_KNOWN = {
    "model", "messages", "stream", "modalities", "audio", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "top_k", "repetition_penalty", "seed", "n", "user", "metadata", "stream_options", "store",
}  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "stop": ([],), "presence_penalty": (0,), "frequency_penalty": (0,), "logprobs": (False,),
    "tools": ([],), "logit_bias": ({},), "parallel_tool_calls": (True, False), "response_format": ({"type": "text"},),
}  # fmt: skip
"""Settings that this server does not have, with the values that ask for nothing."""


_MOST_SAMPLES = 192_000
"""A second, of all channels together: two at 96 kHz. Sound is decoded whole, and a few bytes can say many channels."""
_TEMPERATURES = (1e-5, 2)
"""To draw with: OpenAI's, down to what Settings can divide by."""


class Refused(Exception):
    """The request is at fault, or comes at a bad time."""

    def __init__(self, status: int, message: str, param: str | None = None, retry_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_s = status, retry_s
        self.message, self.param = _writable(message), None if param is None else _writable(param)

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients expect an error."""
        kind = {429: "rate_limit_error", 503: "server_overloaded"}.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


def _writable(text: str) -> str:
    """JSON can say half a character, and UTF-8 cannot."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_tokens: int = 1024
    """Of an answer."""
    audio_s: float = 60.0
    """Of all recordings of a request together."""
    messages: int = 64
    text_chars: int = 32_000
    """Of all messages together."""


@dataclass(frozen=True)
class Asked:
    """A request that can be answered."""

    turns: tuple[Turn, ...]
    settings: Settings
    voice: str
    """"": text alone was asked for."""
    audio_format: str
    stream: bool
    usage_apart: bool
    """A stream ends with a chunk for what was used alone."""


def read_request(body: Any, partner: Partner, limits: Limits) -> Asked:
    """Refused where it is not one this model can answer."""
    if not isinstance(body, dict):
        raise Refused(400, "the body is not a JSON object")
    for name, value in body.items():
        if value is None or value in _NEUTRAL.get(name, ()):
            continue
        if name not in _KNOWN or name in _NEUTRAL:
            raise Refused(400, f"{name[:100]}: this server has no such setting; leave it out", name[:100])
    model = body.get("model")
    if model is not None and model != partner.name:
        raise Refused(404, f"model {str(model)[:100]!r}: this server has {partner.name!r}", "model")
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise Refused(400, "stream: give true or false", "stream")
    voice, audio_format = _speech(body, partner, stream)
    return Asked(
        turns=_turns(body.get("messages"), partner, limits),
        settings=_settings(body, bool(voice), limits),
        voice=voice,
        audio_format=audio_format,
        stream=stream,
        usage_apart=_usage_apart(body.get("stream_options"), stream),
    )


def has_sound(body: Any) -> bool:
    """Whether a request brings recordings, which take a while to read. Of what is no request: no."""
    messages = body.get("messages") if isinstance(body, dict) else None
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "input_audio":
                return True
    return False


def _usage_apart(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise Refused(400, "stream_options: only with stream = true; leave it out", "stream_options")
    if not isinstance(options, dict):
        raise Refused(400, "stream_options: give an object", "stream_options")
    for name, value in options.items():
        if name != "include_usage" and value not in (None, False):
            where = f"stream_options.{name[:100]}"
            raise Refused(400, f"{where}: this server has no such setting; leave it out", where)
    wanted = options.get("include_usage") or False
    if not isinstance(wanted, bool):
        raise Refused(400, "stream_options.include_usage: give true or false", "stream_options.include_usage")
    return wanted


def _speech(body: dict[str, Any], partner: Partner, stream: bool) -> tuple[str, str]:
    modalities = body.get("modalities") or ["text"]
    if not isinstance(modalities, list) or not {"text"} <= set(map(str, modalities)) <= {"text", "audio"}:
        raise Refused(400, 'modalities: give ["text"] or ["text", "audio"]', "modalities")
    if "audio" not in modalities:
        return "", ""
    if not partner.voices:
        raise Refused(400, "this server was started without a vocoder, so it cannot speak; ask for text", "modalities")
    audio = body.get("audio") or {}
    if not isinstance(audio, dict):
        raise Refused(400, "audio: give an object with voice and format", "audio")
    voice = audio.get("voice") or partner.voices[0]
    if voice not in partner.voices:
        raise Refused(400, f"audio.voice: {str(voice)[:40]!r} is none of {', '.join(partner.voices)}", "audio.voice")
    formats = ("pcm16",) if stream else ("wav", "flac")
    audio_format = audio.get("format") or formats[0]
    if audio_format not in formats:
        raise Refused(400, f"audio.format: give {' or '.join(formats)} with stream = {stream}".lower(), "audio.format")
    return voice, audio_format


def _settings(body: dict[str, Any], speaks: bool, limits: Limits) -> Settings:
    given = {
        name: body[name]
        for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
        if body.get(name) is not None
    }
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
            raise Refused(400, f"{name}: not a number", name)
    least, hottest = _TEMPERATURES
    if given.get("temperature", 0) != 0 and not least <= given["temperature"] <= hottest:
        words = f"give 0 for the likeliest token, or {least:g} to {hottest:g} to draw"
        raise Refused(400, f"temperature: {words}", "temperature")
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    most = body.get(name)
    if most is None:
        most = limits.max_tokens
    if type(most) is not int or not 1 <= most <= limits.max_tokens:
        raise Refused(400, f"{name}: give a whole number from 1 to {limits.max_tokens}", name)
    try:
        return Settings(max_new_tokens=most, mode="free" if speaks else "text-only", **given)
    except MostError as error:
        raise Refused(400, str(error), getattr(error, "field", None)) from None


def _turns(messages: Any, partner: Partner, limits: Limits) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages: give a list of at least one message", "messages")
    if len(messages) > limits.messages:
        raise Refused(400, f"messages: {len(messages)} messages; at most {limits.messages} are taken", "messages")
    reader = _Reader(partner, limits)
    turns = tuple(reader.turn(message, f"messages[{n}]") for n, message in enumerate(messages))
    if turns[-1].role != "user":
        raise Refused(400, f"messages[{len(turns) - 1}].role: the last message must be the user's", "messages")
    return turns


class _Reader:
    """Messages to turns, with what is left of the limits."""

    def __init__(self, partner: Partner, limits: Limits) -> None:
        self._partner, self._limits = partner, limits
        self._seconds, self._chars = limits.audio_s, limits.text_chars

    def turn(self, message: Any, where: str) -> Turn:
        if not isinstance(message, dict):
            raise Refused(400, f"{where}: not an object", where)
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise Refused(400, f"{where}.role: give one of {', '.join(_ROLES)}", f"{where}.role")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not content:
            raise Refused(400, f"{where}.content: give a text, or a list of parts", f"{where}.content")
        parts = tuple(self._part(part, role, f"{where}.content[{n}]") for n, part in enumerate(content))
        return Turn(role, parts)

    def _part(self, part: Any, role: str, where: str) -> Part:
        kind = part.get("type") if isinstance(part, dict) else None
        words = part.get(kind) if kind in ("text", "units") else ""
        self._chars -= len(words) if isinstance(words, str) else 0
        if self._chars < 0:
            raise Refused(413, f"{where}: more than {self._limits.text_chars:,} characters in all messages", where)
        if kind == "text" and isinstance(part.get("text"), str):
            if not part["text"].strip():
                raise Refused(400, f"{where}: an empty text", where)
            return part["text"]
        if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
            if role != "user":
                raise Refused(400, f"{where}: only the user's messages hold audio", where)
            return self._wave(part["input_audio"], where)
        if kind == "units" and isinstance(part.get("units"), str) and part["units"]:
            try:
                return tuple(self._partner.tokens.text_to_units(part["units"]))
            except MostError as error:
                raise Refused(400, f"{where}.units: {error}", where) from None
        raise Refused(400, f"{where}: neither a text, nor an input_audio, nor a units part", where)

    def _wave(self, audio: dict[str, Any], where: str) -> Wave:
        if why := self._partner.why_deaf:
            raise Refused(400, f"{where}: {why}, so it cannot hear; send text", where)
        data = audio.get("data")
        if not isinstance(data, str) or not data:
            raise Refused(400, f"{where}.input_audio.data: give base64", where)
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise Refused(400, f"{where}.input_audio.data: not base64", where) from None
        with tempfile.NamedTemporaryFile(prefix="most-heard-", suffix=".audio") as file:  # told by content, not by name
            file.write(content)
            file.flush()
            return self._read(Path(file.name), where)

    def _read(self, path: Path, where: str) -> Wave:
        try:
            found = probe(path, most_s=self._seconds)
            self._seconds -= found.duration
            if self._seconds < 0:
                most = self._limits.audio_s
                words = f"{most - self._seconds:.1f} s of audio in all messages; at most {most:g} s are taken"
                raise Refused(413, f"{where}: {words}", where)
            if found.channels * found.sample_rate > _MOST_SAMPLES:
                words = f"{found.channels} channels at {found.sample_rate:,} samples a second"
                raise Refused(413, f"{where}: {words}; at most {_MOST_SAMPLES:,} of all channels are taken", where)
            return read_span(path, sample_rate=self._partner.sample_rate)
        except AudioError as error:
            detail = error.detail.replace(f"{path}: ", "").replace(str(path), "the recording")
            raise Refused(400, f"{where}: {error.reason}: {detail}", where) from None
