"""Requests as OpenAI's clients send them, whole and streamed; what is wrong with one is said in one line and a 4xx."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.speech import AudioError
from tests.serve.partners import Parrot, Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Parrot(), body_bytes=2 << 20, body_s=0.5) as server:
        yield server


def sound(seconds: float, rate: int = 8000, kind: str = "WAV") -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(round(seconds * rate)) / 5), rate, format=kind)
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}}


def wide(channels: int, rate: int) -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((rate, channels)), rate, format="FLAC")
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(file.getvalue()).decode()}}


def test_a_text_is_answered_whole(server: Server) -> None:
    status, answer = server.ask("hello there", model="parrot", temperature=0, max_tokens=50)
    assert status == 200, answer
    assert (answer["object"], answer["model"]) == ("chat.completion", "parrot")
    choice = answer["choices"][0]
    assert choice["message"]["content"] == "hello there" and choice["finish_reason"] == "stop"
    assert "audio" not in choice["message"]
    assert answer["usage"] == {"prompt_tokens": 12, "completion_tokens": 12, "total_tokens": 24}
    told = answer["most"]["tokens"]
    assert [one["text"] for one in told[:5]] == list("hello")
    assert {(one["modality"], one["experts"]) for one in told} == {("text", "text")}


def test_an_answer_can_be_heard(server: Server) -> None:
    status, answer = server.ask("one two three", modalities=["text", "audio"], audio={"voice": "bert", "format": "wav"})
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(message["audio"]["data"])))
    assert rate == 16000 and message["audio"]["transcript"] == "one two three"
    assert np.allclose(wave, np.repeat([-0.01, -0.02, -0.03], 100), atol=1e-4)
    units = [one for one in answer["most"]["tokens"] if one["is_unit"]]
    assert [(one["text"], one["modality"], one["experts"]) for one in units] == [
        (f"[Hu{n}]", "audio", "audio") for n in range(3)
    ]


def test_a_stream_is_the_whole_answer_in_pieces(server: Server) -> None:
    events = server.stream("so it is", modalities=["text", "audio"], audio={"voice": "anna"})
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1] == "[DONE]" and events[-2]["choices"][0]["finish_reason"] == "stop"
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == "so it is"
    pcm = b"".join(base64.b64decode(delta["audio"]["data"]) for delta in deltas if "audio" in delta)
    assert np.allclose(np.frombuffer(pcm, "<i2") / 32767, np.repeat([0.01, 0.02, 0.03], 100), atol=1e-4)
    tokens = [token for event in events[:-1] for token in event.get("most", {}).get("tokens", [])]
    assert len(tokens) == events[-2]["usage"]["completion_tokens"] == 8 + 5 + 1
    assert len({event["id"] for event in events[:-1]}) == 1


def test_usage_comes_in_a_chunk_of_its_own_where_asked_for(server: Server) -> None:
    plain = server.stream("so it is", stream_options=None)
    events = server.stream("so it is", stream_options={"include_usage": True})
    assert events[-1] == "[DONE]" and events[-2]["choices"] == []
    assert events[-2]["usage"] == {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
    assert events[-2]["object"] == "chat.completion.chunk" and events[-2]["id"] == events[0]["id"]
    assert all(event["usage"] is None for event in events[:-2])
    assert events[-3]["choices"][0]["finish_reason"] == "stop" and len(events) == len(plain) + 1
    assert len(server.stream("so it is", stream_options={"include_usage": False})) == len(plain)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_recordings_of_any_format_are_heard_at_the_partners_rate(server: Server, kind: str) -> None:
    status, answer = server.ask([{"type": "text", "text": "hear"}, sound(1.5, 44100, kind)])
    assert status == 200 and answer["choices"][0]["message"]["content"] == "hear and 1.50 s"


def test_units_of_an_earlier_answer_are_taken_back(server: Server) -> None:
    said = {"role": "assistant", "content": [{"type": "units", "units": "[Hu3][Hu1]"}]}
    turns = [{"role": "user", "content": "a"}, said, {"role": "user", "content": "b"}]
    assert server.post({"messages": turns})[0] == 200
    status, answer = server.ask([{"type": "units", "units": "[Hu3][Hu1]"}])
    assert status == 200 and answer["choices"][0]["message"]["content"] == "units 3 1"


def test_an_answer_ends_at_its_length(server: Server) -> None:
    _, answer = server.ask("much too long", max_completion_tokens=4)
    assert answer["choices"][0]["message"]["content"] == "much"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert server.stream("much too long", max_tokens=4)[-2]["choices"][0]["finish_reason"] == "length"


class Halves(Parrot):
    """Two tokens make a character; of one alone there is only a sign that something is missing."""

    def text(self, ids: Sequence[int]) -> str:
        return "é" * (len(ids) // 2) + "\N{REPLACEMENT CHARACTER}" * (len(ids) % 2)


def test_a_character_cut_in_half_at_the_end_is_no_token() -> None:
    with serving(Halves()) as server:
        _, answer = server.ask("abc", max_tokens=3)
        events = server.stream("abc", max_tokens=3)
    assert answer["choices"][0]["message"]["content"] == "é\N{REPLACEMENT CHARACTER}"
    assert answer["usage"]["completion_tokens"] == len(answer["most"]["tokens"]) == 3
    assert events[-2]["usage"] == answer["usage"]
    said = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(said) == "é\N{REPLACEMENT CHARACTER}"
    assert sum(len(event.get("most", {"tokens": []})["tokens"]) for event in events[:-1]) == 3


def asking(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def aloud(**audio: str) -> dict[str, Any]:
    return asking("x") | {"modalities": ["text", "audio"], "audio": audio}


def recording(data: str) -> list[dict[str, Any]]:
    return [{"type": "input_audio", "input_audio": {"data": data}}]


TEMPERATURES = "temperature: give 0 for the likeliest token, or 1e-05 to 2 to draw"
BROKEN = base64.b64encode(b"RIFF\x24\x00\x00\x00WAVEfmt broken").decode()
BAD: dict[str, tuple[Any, int, str]] = {
    "no json": (b"{", 400, "not JSON"),
    "deep": (b"[" * 100_000, 400, "not JSON"),
    "a list": ([], 400, "not a JSON object"),
    "no messages": ({}, 400, "messages: give a list"),
    "many messages": ({"messages": [{"role": "user", "content": "x"}] * 65}, 400, "at most 64"),
    "a strange role": ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role"),
    "no question": ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "must be the user's"),
    "empty text": (asking(" "), 400, "empty text"),
    "no content": (asking([]), 400, "messages[0].content"),
    "an image": (asking([{"type": "image_url"}]), 400, "neither a text"),
    "long text": (asking("x" * 40_000), 413, "32,000 characters"),
    "other model": ({"model": "gpt-4o", "messages": []}, 404, "this server has 'parrot'"),
    "unknown field": (asking("x") | {"speed": 2}, 400, "speed: this server has no"),
    "many answers": (asking("x") | {"n": 2}, 400, "n: "),
    "tools": (asking("x") | {"tools": [{}]}, 400, "tools: "),
    "hot": (asking("x") | {"temperature": 9}, 400, TEMPERATURES),
    "cold": (asking("x") | {"temperature": 1e-40}, 400, TEMPERATURES),
    "below zero": (asking("x") | {"temperature": -1}, 400, TEMPERATURES),
    "options of no stream": (asking("x") | {"stream_options": {"include_usage": True}}, 400, "stream_options: only"),
    "options in a list": (asking("x") | {"stream": True, "stream_options": []}, 400, "stream_options: give an object"),
    "an unknown option": (asking("x") | {"stream": True, "stream_options": {"pace": 2}}, 400, "stream_options.pace: "),
    "odd usage": (asking("x") | {"stream": True, "stream_options": {"include_usage": 1}}, 400, "give true or false"),
    "a word": (asking("x") | {"top_p": "all"}, 400, "top_p: not a number"),
    "nan": (b'{"messages": [{"role": "user", "content": "x"}], "top_p": NaN}', 400, "top_p: not a number"),
    "no float": (asking("x") | {"temperature": 10**400}, 400, "temperature: not a number"),
    "no seed": (asking("x") | {"seed": 10**400}, 400, "seed: not a number"),
    "half a character": (asking("x") | {"\ud800": 2}, 400, "this server has no"),
    "half a character's model": (asking("x") | {"model": "\ud800"}, 404, "this server has 'parrot'"),
    "an odd part": (asking([{"type": ["text"], "text": "x"}]), 400, "neither a text"),
    "an odd role": ({"messages": [{"role": {}, "content": "x"}]}, 400, "messages[0].role"),
    "an odd voice": (aloud(voice={"id": 1}), 400, "none of anna, bert"),  # type: ignore[arg-type]
    "no tokens": (asking("x") | {"max_tokens": 0}, 400, "max_tokens: give"),
    "a million tokens": (asking("x") | {"max_tokens": 10**6}, 400, "from 1 to 1024"),
    "only audio": (asking("x") | {"modalities": ["audio"]}, 400, "modalities: give"),
    "a stranger's voice": (aloud(voice="alloy"), 400, "none of anna, bert"),
    "mp3": (aloud(format="mp3"), 400, "wav or flac"),
    "not base64": (asking(recording("?")), 400, "not base64"),
    "broken audio": (asking(recording(BROKEN)), 400, "messages[0].content[0]: "),
    "no audio": (asking([sound(0)]), 400, "empty file"),
    "long audio": (asking([sound(40), sound(21)]), 413, "61.0 s of audio in all messages; at most 60 s"),
    "many channels": (asking([wide(8, 48000)]), 413, "8 channels at 48,000 samples a second; at most 192,000"),
    "units beyond": (asking([{"type": "units", "units": "[Hu999999]"}]), 400, "content[0].units"),
    "what the model cannot read": (asking("déjà vu"), 400, "not English"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_answered_is_refused_in_one_line(server: Server, name: str) -> None:
    body, status, words = BAD[name]
    found, _, answer = server.post(body)
    error = json.loads(answer)["error"]
    assert found == status and words in error["message"], error
    assert "\n" not in error["message"] and "/tmp" not in error["message"] and len(error["message"]) < 300
    assert server.ask("still there")[0] == 200


def test_other_ways_to_ask_wrongly(server: Server) -> None:
    assert server.send("GET", "/v1/chat/completions")[0] == 405
    assert server.send("GET", "/etc/passwd")[0] == server.send("GET", "/../../etc/passwd")[0] == 404
    assert server.post(b"{}", Content_Type="text/plain")[0] == 415
    assert server.post(b"x" * (3 << 20))[0] == 413


def test_without_codec_and_vocoder_it_neither_hears_nor_speaks() -> None:
    with serving(Parrot(hears=False, voices=())) as server:
        status, answer = server.ask([sound(1)])
        assert status == 400 and "cannot hear" in answer["error"]["message"]
        status, answer = server.ask("x", modalities=["text", "audio"])
        assert status == 400 and "cannot speak" in answer["error"]["message"]


def test_what_the_server_has_is_listed(server: Server) -> None:
    _, _, answer = server.send("GET", "/v1/models")
    model = json.loads(answer)["data"][0]
    assert model["most"]["body_bytes"] == 2 << 20 and model["most"]["audio_s"] == 60
    assert model["id"] == "parrot" and model["most"]["voices"] == ["anna", "bert"] and model["most"]["hears"]
    status, headers, page = server.send("GET", "/")
    assert status == 200 and b"talk.js" in page and "default-src 'none'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in {name.lower() for name in headers}


def test_who_sends_text_does_not_wait_for_recordings(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """All places for recordings are taken, and go on being."""
    gate, inside = threading.Event(), threading.Semaphore(0)

    def held(path: Path, **options: Any) -> Any:
        inside.release()
        assert gate.wait(60)
        raise AudioError("unreadable audio", f"{path}: held")

    monkeypatch.setattr("megatron_most.serve.asked.probe", held)
    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(server.ask, [sound(1)]) for _ in range(5)]
        for _ in range(4):
            assert inside.acquire(timeout=60)
        assert server.ask("still there")[0] == 200
        gate.set()
        assert [answer.result()[0] for answer in waiting] == [400] * 5
