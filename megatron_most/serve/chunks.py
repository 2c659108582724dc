"""Answers in OpenAI's shapes: whole ones, and the chunks of a stream.

Beside OpenAI's fields, `most` tells of each token its modality and the experts it uses; clients that do not know the
field pass over it.
"""

from __future__ import annotations

import base64
import io
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_most.serve.answering import Token
from megatron_most.serve.partner import Partner, Wave
from megatron_most.vocab import TAG_NAMES

_FINISH = {"eos": "stop", "length": "length"}


class Chat:
    """What all chunks of one answer have in common."""

    def __init__(self, partner: Partner, num_prompt: int, usage_apart: bool = False) -> None:
        """`usage_apart`: a stream tells what was used in a chunk of its own, without choices, and null before it."""
        self._partner, self._num_prompt, self._num_tokens = partner, num_prompt, 0
        self._usage_apart = usage_apart
        self.id, self._audio_id = f"chatcmpl-{secrets.token_hex(12)}", f"audio_{secrets.token_hex(12)}"
        self._created = int(time.time())

    def count(self, token: Token) -> None:
        self._num_tokens += token.id is not None

    def begin(self) -> bytes:
        """The first event of a stream."""
        return self._event({"role": "assistant", "content": ""})

    def token(self, token: Token) -> bytes:
        """An event of a stream."""
        delta: dict[str, Any] = {"content": token.text} if token.text else {}
        return self._event(delta) if token.id is None else self._event(delta, most={"tokens": [self._told(token)]})

    def sound(self, wave: Wave) -> bytes:
        """An event of a stream: 16-bit samples."""
        data = base64.b64encode(pcm16(wave)).decode()
        return self._event({"audio": {"id": self._audio_id, "data": data}})

    def end(self, why: str) -> bytes:
        """The last events of a stream."""
        finish, used = _FINISH.get(why, why), {"usage": self._usage()}
        if self._usage_apart:
            events = self._event({}, finish=finish) + self._chunk({"choices": [], **used})
        else:
            events = self._event({}, finish=finish, **used)
        return events + b"data: [DONE]\n\n"

    def whole(
        self, text: str, wave: Wave | None, audio_format: str, tokens: Sequence[Token], why: str
    ) -> dict[str, Any]:
        """A whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if wave is not None:
            data = base64.b64encode(sound_file(wave, self._partner.sample_rate, audio_format)).decode()
            message["audio"] = {"id": self._audio_id, "data": data, "transcript": text, "expires_at": self._created}
        choice = {"index": 0, "message": message, "finish_reason": _FINISH.get(why, why), "logprobs": None}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": self._usage(),
            "most": {"tokens": [self._told(token) for token in tokens], "sample_rate": self._partner.sample_rate},
        }

    def _event(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return self._chunk({"choices": [choice], **({"usage": None} if self._usage_apart else {}), **more})

    def _chunk(self, more: dict[str, Any]) -> bytes:
        content = {**self._head("chat.completion.chunk"), **more}
        return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self._partner.name}

    def _usage(self) -> dict[str, int]:
        total = self._num_prompt + self._num_tokens
        return {"prompt_tokens": self._num_prompt, "completion_tokens": self._num_tokens, "total_tokens": total}

    def _told(self, token: Token) -> dict[str, Any]:
        tokens = self._partner.tokens
        assert token.id is not None, "text that was held back is no token to tell of"
        is_unit = token.id in tokens.unit_ids
        if is_unit:
            text = tokens.unit_token.format(tokens.unit_of_id(token.id))
        else:
            text = dict(tokens.new_tokens()).get(token.id) or token.text
        return {
            "id": token.id,
            "text": text,
            "is_unit": is_unit,
            "modality": TAG_NAMES[token.tag],
            "experts": self._partner.group(token.tag),
        }


def pcm16(wave: Wave) -> bytes:
    """Little-endian 16-bit samples."""
    return (np.clip(wave, -1, 1) * 32767).round().astype("<i2").tobytes()


def sound_file(wave: Wave, sample_rate: int, audio_format: str) -> bytes:
    """A WAV or FLAC file."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), sample_rate, format=audio_format.upper(), subtype="PCM_16")
    return file.getvalue()
