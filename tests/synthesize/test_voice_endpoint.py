"""A voice behind an endpoint, against a real local server: each text paid for once, no budget passed, kills included.

What the server sends may be no sound, no speech, or without end; each is counted, and the run goes on.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_most.errors import DataError
from megatron_most.synthesize import run_synthesize
from megatron_most.synthesize import speak as room
from megatron_most.synthesize.ledger import REPLIES, Budget, open_ledger
from megatron_most.synthesize.voice_endpoint import WAVES, EndpointSpeaker
from megatron_most.synthesize.voices import VoiceOptions
from megatron_most.synthesize.writer import WriterFailed
from tests.chat_server import FAULTS, ChatServer, chat_server, flaky_plan, tone
from tests.data_files import content

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT / "examples" / "synthesis" / "seeds.toml"
KEY = "sk-voice/0123456789abcdef+XYZ"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_VOICE_KEY", KEY)


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dialogues") / "d"
    run_synthesize(
        ["dialogues", "--seeds", str(SEEDS), "--dialogues", "24", "--out", str(out), "--shape.max-exchanges", "2"]
    )
    return out


def words(server: ChatServer, dialogues: Path, out: Path, *more: str) -> list[str]:
    common = ["speak", "--dialogues", str(dialogues), "--out", str(out), "--name", "spoken", "--voices", "anna", "bob"]
    common += ["--voice.url", server.url, "--voice.key-env", "TEST_VOICE_KEY", "--voice.pause-s", "0.001"]
    common += ["--voice.timeout-s", "30", "--judge.name", "none", "--workers", "8", "--weights.text-to-text", "0.05"]
    return [*common, *more]


def asked(out: Path) -> list[dict]:
    """The ledger's lines of requests that were sent."""
    lines = (out.with_name(f"{out.name}.ledger") / REPLIES).read_text().splitlines()
    return [found for found in map(json.loads, lines) if "most" in found]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, dialogues: Path) -> tuple[dict[str, bytes], int]:
    """What a good server and an unbroken run give, and how many requests that takes."""
    os.environ["TEST_VOICE_KEY"] = KEY
    out = tmp_path_factory.mktemp("unbroken") / "out"
    with chat_server() as server:
        run_synthesize(words(server, dialogues, out))
        rows = [json.loads(line) for line in (out / "utterances.jsonl").read_text().splitlines()]
        assert server.requests == len(server.answered) == len({(row["text"], row["speaker"]) for row in rows}) > 30
        return content(out), server.requests


def test_a_flaky_and_hostile_service_is_paid_once_for_each_text(
    dialogues: Path, tmp_path: Path, unbroken: tuple[dict[str, bytes], int], capsys: pytest.CaptureFixture[str]
) -> None:
    met: set[str] = set()

    def plan(request: dict) -> list[str]:
        met.update(flaky_plan(request))
        return flaky_plan(request)

    with chat_server(plan) as server:
        run_synthesize(words(server, dialogues, tmp_path / "out", "--voice.timeout-s", "1.5"))
        assert met == set(FAULTS) and server.requests > unbroken[1] + 20
        assert len(server.answered) == unbroken[1] and set(server.answered.values()) == {1}
        assert server.keys == {f"Bearer {KEY}"}
        # Another run with that ledger, in another shape, costs nothing: its texts were paid for.
        before = server.requests
        ledger = ["--ledger", str(tmp_path / "out.ledger"), "--name", "again", "--max-reject-rate", "0.4"]
        run_synthesize(words(server, dialogues, tmp_path / "again", *ledger))
        assert server.requests == before
    assert content(tmp_path / "out") == unbroken[0]
    told = capsys.readouterr()
    assert KEY not in told.out + told.err and "characters" in told.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize("status", ["200", "202", "204"])
def test_an_empty_success_is_tried_again(status: str, tmp_path: Path) -> None:
    with chat_server(lambda request: [f"{status} empty"]) as server, open_ledger(tmp_path / "l", Budget()) as ledger:
        speaker = EndpointSpeaker(VoiceOptions(url=server.url, pause_s=0.001), ledger)
        assert len(speaker.say("some words to say", "anna")) and server.requests == 2
        once = EndpointSpeaker(VoiceOptions(url=server.url, tries=1), ledger)
        with pytest.raises(WriterFailed, match=f"status {status} with nothing in it, the last of 1 tries"):
            once.say("other words to say", "anna")


def test_words_that_are_wanted_several_times_at_once_are_asked_for_once(tmp_path: Path) -> None:
    with chat_server() as server, open_ledger(tmp_path / "ledger", Budget()) as ledger:
        server.pause_s = 0.1
        speaker = EndpointSpeaker(VoiceOptions(url=server.url), ledger)
        with ThreadPoolExecutor(8) as pool:
            waves = list(pool.map(lambda _: speaker.say("the same words", "anna"), range(8)))
        assert server.requests == 1 and all(np.array_equal(wave, waves[0]) for wave in waves)
        next((tmp_path / "ledger" / WAVES).iterdir()).write_bytes(b"damaged")
        assert np.array_equal(speaker.say("the same words", "anna"), waves[0]) and server.requests == 2


@pytest.mark.parametrize("kind", ["requests", "characters", "money"])
def test_a_budget_holds_and_a_larger_one_goes_on(
    kind: str, dialogues: Path, tmp_path: Path, unbroken: tuple[dict[str, bytes], int]
) -> None:
    out = tmp_path / "out"
    with chat_server(flaky_plan) as server:
        for limit in (0, 900, 1800):
            given = {"requests": limit // 60, "characters": limit, "money": limit * 15 / 1e6}[kind]
            price = ["--budget.price", "15"] if kind == "money" else []
            with pytest.raises(DataError, match=f"--budget.{kind} .*is used up.*characters; give a larger one"):
                run_synthesize(words(server, dialogues, out, f"--budget.{kind}", str(given), *price))
            sent = asked(out)
            if kind == "requests":
                assert server.requests <= len(sent) == given
            else:
                most = sum(line["most"][0] for line in sent)  # what failed for nothing may be spent again
                assert server.characters <= limit and (server.characters > 0.3 * limit or not most)
        run_synthesize(words(server, dialogues, out))
        assert len(server.answered) == unbroken[1] and set(server.answered.values()) == {1}
    assert content(out) == unbroken[0]


def test_killed_and_started_again_nothing_is_lost_or_paid_for_twice(
    dialogues: Path, tmp_path: Path, unbroken: tuple[dict[str, bytes], int]
) -> None:
    out, logs, draw = tmp_path / "out", "", random.Random(5)
    environment, kills, workers = {**os.environ, "PYTHONPATH": str(ROOT)}, 3, 2
    with chat_server() as server:
        server.pause_s = 0.01
        command = [sys.executable, str(ROOT / "tools" / "synthesize.py"), *words(server, dialogues, out)]
        command += ["--workers", str(workers)]
        for kill in range(kills):
            reached = threading.Event()
            at = server.requests + draw.randrange(4, unbroken[1] // (kills + 1))
            server.on_request = lambda number, at=at, event=reached: event.set() if number >= at else None
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            assert reached.wait(60), kill
            os.kill(process.pid, signal.SIGKILL)
            logs += process.communicate()[1]
            assert process.returncode == -signal.SIGKILL and not out.exists()
        server.on_request = lambda number: None
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        # Asked for again is only what was on its way at a kill.
        assert len(server.answered) == unbroken[1]
        assert sum(server.answered.values()) - unbroken[1] <= kills * workers
        assert len(asked(out)) >= server.requests - kills * workers
    assert content(out) == unbroken[0] and KEY not in logs + done.stderr


def test_whatever_a_service_sends_as_sound_is_counted_and_the_run_goes_on(dialogues: Path, tmp_path: Path) -> None:
    def sound(request: dict) -> bytes:
        text, voice = request["input"].lower(), request["voice"]
        good = tone(text, voice)
        if "honey" in text:
            return good[:44] + bytes(len(good) - 44)
        if "whale" in text:
            return good[:44] + random.Random(text).randbytes(len(good) - 44)
        if "coffee" in text:
            return tone("word " * 1500, voice)  # ten minutes
        if "sleep" in text:
            return good[: len(good) // 2]  # its header promises more
        if "train" in text:
            return b"ID3\3" + bytes(range(256)) * 20  # by its head an MP3, and nothing
        return good

    with chat_server() as server:
        server.sound = sound
        given = ["--voice.tries", "2", "--max-reject-rate", "0.9", "--weights.text-to-text", "0"]
        run_synthesize(words(server, dialogues, tmp_path / "out", *given))
        tries = Counter(server.tries.values())
    done = json.loads((tmp_path / "out" / "speech.json").read_text())
    assert set(done["rejects"]) == {"silence", "noise", "wrong length", "no reply from the voice"}
    assert done["spoken"] + sum(done["rejects"].values()) == 24 and done["spoken"] >= 5
    told = (tmp_path / "out" / "rejects.jsonl").read_text()
    assert "600 s, where" in told and "truncated audio" in told and "unreadable audio" in told
    assert set(tries) == {1, 2}  # a whole wave is paid for once whatever it holds; a broken one is tried again


class DyingJudge:
    """Hears a while, then nothing for some calls, then again."""

    def __init__(self, first: int, last: int, error: type[BaseException] = RuntimeError) -> None:
        self.identity, self.calls, self.dead, self.error = "a judge", 0, range(first, last), error

    def transcribe(self, waves: list[np.ndarray]) -> list[str]:
        self.calls += 1
        if self.calls in self.dead:
            raise self.error("device lost")
        return ["nothing"] * len(waves)


def judged(monkeypatch: pytest.MonkeyPatch, judge: DyingJudge, words: list[str], folder: Path) -> list[str]:
    """The words of a command whose judge this is."""
    monkeypatch.setattr("megatron_most.synthesize.hearing.load_judge", lambda name, **options: judge)
    given = [*words, "--workers", "1", "--judge.max-wer", "9", "--judge.model", str(folder)]
    given[given.index("none")] = "whisper"
    return given


def test_without_a_judge_voices_go_on_and_what_they_said_is_heard_later(
    dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with chat_server() as server:

        def speak(out: str, first: int, last: int) -> Path:
            given = words(server, dialogues, tmp_path / out, "--ledger", str(tmp_path / f"{out}.ledger"))
            run_synthesize(judged(monkeypatch, DyingJudge(first, last), given, tmp_path))
            return tmp_path / out

        unbroken, once = content(speak("unbroken", 0, 0)), server.requests
        told = r"device lost. (\d+) of 24 dialogues are in the lists; (\d+) more are spoken and kept. When the judge"
        with pytest.raises(DataError, match=told) as caught:
            speak("out", 5, 999)
        assert len(caplog.records) >= 1 and caplog.text.count("voices speak, and nobody hears") == 1
        heard, kept = (int(number) for number in re.search(told, str(caught.value)).groups())  # type: ignore[union-attr]
        assert not (tmp_path / "out").exists() and 4 <= heard < 12 and kept > 10
        assert len(list((tmp_path / "out.part" / "unheard").glob("*/*.npz"))) == kept
        assert server.requests == 2 * once, "all of them are spoken"
        shutil.rmtree(tmp_path / "out.ledger")  # its replies would serve as well
        with pytest.raises(DataError, match=f"{heard} of 24 dialogues are in the lists; {kept} more"):
            speak("out", 1, 999)
        assert content(speak("out", 0, 0)) == unbroken  # no dialogue was set aside for the judge's sake
        assert server.requests == 2 * once, "and none is spoken again"
        assert content(speak("short", 5, 7)) == unbroken, "away for a moment it is asked again"


class OddJudge(DyingJudge):
    """Breaks on some dialogues, whenever it hears them, as a bug of a library would."""

    def transcribe(self, waves: list[np.ndarray]) -> list[str]:
        if int(sum(abs(wave).sum() for wave in waves)) % 3 == 0:
            raise ValueError("odd wave")
        return super().transcribe(waves)


def test_dialogues_that_break_the_judge_are_set_aside_and_counted(
    dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chat_server() as server:
        given = words(server, dialogues, tmp_path / "out", "--max-reject-rate", "0.9")
        run_synthesize(judged(monkeypatch, OddJudge(0, 0), given, tmp_path))
    done = json.loads((tmp_path / "out" / "speech.json").read_text())
    assert list(done["rejects"]) == ["judge failed"] and 0 < done["rejects"]["judge failed"] < done["spoken"]
    assert "odd wave" in (tmp_path / "out" / "rejects.jsonl").read_text()


@pytest.mark.parametrize("shard", ["0/1", "0/4"])
def test_a_judge_that_goes_at_the_very_end_costs_no_dialogue(
    shard: str, dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too late for eight in a row; of a small shard all."""
    with chat_server() as server:

        def speak(out: str, judge: DyingJudge) -> Path:
            given = words(server, dialogues, tmp_path / out, "--ledger", str(tmp_path / f"{out}.ledger"))
            run_synthesize(judged(monkeypatch, judge, [*given, "--shard", shard], tmp_path))
            return tmp_path / out

        whole = DyingJudge(0, 0)
        unbroken, once = content(speak("unbroken", whole)), server.requests
        first = whole.calls - 2 if shard == "0/1" else 1
        with pytest.raises(DataError, match=r"the judge is gone: .*device lost.* more are spoken and kept"):
            speak("out", DyingJudge(first, 999))
        assert server.requests == 2 * once and not list((tmp_path / "out").rglob("speech.json"))
        assert content(speak("out", DyingJudge(0, 0))) == unbroken and server.requests == 2 * once


def test_what_was_heard_while_the_judge_was_going_is_kept_too(
    dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures have begun, and of what is under way some is heard still."""
    with chat_server() as server:
        given = words(server, dialogues, tmp_path / "out", "--ledger", str(tmp_path / "ledger"))

        class Going(DyingJudge):
            def transcribe(self, waves: list[np.ndarray]) -> list[str]:
                self.calls += 1
                if self.calls <= 8:
                    raise RuntimeError("device lost")
                return ["nothing"] * len(waves)

        def order(speech: Any, left: Any, *more: Any) -> Any:  # all are heard before the first is looked at
            made = list(in_order(speech, left, *more))
            for *_, turns in made:
                turns.exception()
            yield from made

        in_order = room._in_order
        with monkeypatch.context() as changed:
            changed.setattr(room, "_in_order", order)
            with pytest.raises(DataError, match="the judge is gone"):
                run_synthesize(judged(changed, Going(0, 0), given, tmp_path))
        shutil.rmtree(tmp_path / "ledger")
        asked = server.requests
        run_synthesize(judged(monkeypatch, DyingJudge(0, 0), given, tmp_path))
        assert server.requests == asked, "none is spoken again"


def test_killed_without_a_judge_what_was_kept_is_not_spoken_again(
    dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a file that a kill has cut short is none, nor is a damaged one, nor one of other words."""
    with chat_server() as server:
        out = tmp_path / "out"
        given = words(server, dialogues, out, "--ledger", str(tmp_path / "ledger"))
        with pytest.raises(DataError, match="the judge is gone"):
            run_synthesize(judged(monkeypatch, DyingJudge(1, 999), given, tmp_path))
        shutil.rmtree(tmp_path / "ledger")
        asked = server.requests
        with pytest.raises(KeyboardInterrupt):  # some are in the lists, and nothing is committed yet
            run_synthesize(judged(monkeypatch, DyingJudge(5, 99, KeyboardInterrupt), given, tmp_path))
        assert server.requests == asked
        first, second, *rest = sorted((out.with_name("out.part") / "unheard").glob("*/*.npz"))
        first.rename(first.with_suffix(".tmp"))
        with np.load(rest[0]) as other:
            turns = sum(name != "said" for name in np.load(second))
            np.savez(second, **other)
        lost = sum(name != "said" for name in np.load(first.with_suffix(".tmp"))) + turns
        lost += sum(name != "said" for name in np.load(rest[1]))
        rest[1].write_bytes(rest[1].read_bytes()[:-100])
        run_synthesize(judged(monkeypatch, DyingJudge(0, 0), given, tmp_path))
        assert server.requests == asked + lost and not list(out.rglob("unheard"))
        asked = server.requests
        again = words(server, dialogues, tmp_path / "again", "--ledger", str(tmp_path / "ledger2"))
        run_synthesize(judged(monkeypatch, DyingJudge(0, 0), again, tmp_path))
    assert content(out) == content(tmp_path / "again")


def test_a_voice_that_dies_while_the_judge_is_away_ends_the_run(
    dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chat_server(lambda request: ["500"] * 99 if server.requests > 26 else []) as server:
        given = words(server, dialogues, tmp_path / "out", "--voice.tries", "1")
        with pytest.raises(
            DataError, match="1 of 24 dialogues are spoken; the voice is gone, and the judge: .*status 500"
        ):
            run_synthesize(judged(monkeypatch, DyingJudge(1, 999), given, tmp_path))
        assert list((tmp_path / "out.part" / "unheard").glob("*/*.npz"))


def test_a_service_that_breaks_down_is_told_from_texts_it_cannot_say(
    dialogues: Path, tmp_path: Path, unbroken: tuple[dict[str, bytes], int]
) -> None:
    """Dialogues that nobody has to speak say nothing of it: they come between failures and are no sign of life."""
    is_down = True
    out = tmp_path / "out"
    with chat_server(lambda request: ["500"] * 99 if is_down else []) as server:
        given = words(server, dialogues, out, "--voice.tries", "2")
        with pytest.raises(DataError, match="[0-3] of 24 dialogues are spoken; the voice is gone.*status 500"):
            run_synthesize(given)
        is_down = False
        run_synthesize(given)
    assert content(out) == unbroken[0]  # none was set aside for it


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--budget.money", "3"], "--budget.price"),
        (["--budget.characters", "-1"], "--budget.characters -1"),
        (["--voice.tries", "0"], "--voice.tries 0"),
        (["--voice.timeout-s", "nan"], "--voice.timeout-s nan"),
        (["--voice.key-env", KEY], "never give the key itself"),
        (["--voice.url", f"http://me:{KEY[:5]}@host/v1"], "keys come by --voice.key-env"),
        (["--voice.command", "flite {text} {wave}"], "no more and no less"),
    ],
    ids=["price", "amount", "tries", "timeout", "the key", "user", "two"],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    dialogues: Path, tmp_path: Path, more: list[str], told: str
) -> None:
    with chat_server() as server:
        with pytest.raises(DataError, match=told) as caught:
            run_synthesize(words(server, dialogues, tmp_path / "out", *more))
        assert server.requests == 0 and KEY[:9] not in str(caught.value)


def test_a_budget_without_a_service_is_refused(dialogues: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--budget and --ledger are for --voice.url"):
        run_synthesize(
            ["speak", "--dialogues", str(dialogues), "--out", str(tmp_path / "x"), "--name", "x", "--voices", "a",
             "--voice.command", "cat {text} {wave}", "--budget.requests", "4", "--judge.name", "none"]
        )  # fmt: skip
