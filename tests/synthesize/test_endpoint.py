"""The writer behind an endpoint, against a real local server that is slow, flaky and hostile.

Nothing is lost, nothing paid for twice, no budget passed, and the key is in no file, line or error. The commands are
the users' own; that faults were really met is asserted beside each claim.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_most.errors import DataError
from megatron_most.synthesize import run_synthesize
from megatron_most.synthesize.http_post import Address, NoAnswer, post, without_key
from megatron_most.synthesize.ledger import REPLIES
from tests.chat_server import FAULTS, ChatServer, chat_server, dialogue_for, flaky_plan

ROOT = Path(__file__).resolve().parent.parent.parent
SEEDS = str(ROOT / "examples" / "synthesis" / "seeds.toml")
KEY = "sk-Test/0123456789abcdef+XYZ"
COUNT = 40


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_LLM_KEY", KEY)


def words(server: ChatServer | str, out: Path, *more: str) -> list[str]:
    url = server if isinstance(server, str) else server.url
    common = ["dialogues", "--seeds", SEEDS, "--writer", "endpoint", "--endpoint.model", "tiny", "--out", str(out)]
    common += ["--endpoint.url", url, "--endpoint.key-env", "TEST_LLM_KEY", "--dialogues", str(COUNT)]
    common += ["--endpoint.concurrency", "8", "--endpoint.pause-s", "0.001", "--endpoint.timeout-s", "1.5"]
    return [*common, "--endpoint.max-answer-mib", "0.1", "--endpoint.max-tokens", "300", *more]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a good server and an unbroken run give."""
    os.environ["TEST_LLM_KEY"] = KEY
    out = tmp_path_factory.mktemp("unbroken") / "out"
    with chat_server() as server:
        run_synthesize(words(server, out))
        assert server.requests == sum(server.answered.values()) == COUNT  # each wanted dialogue was asked for once
        assert server.keys == {f"Bearer {KEY}"} and server.most_flying <= 8
    made = files(out)
    assert made["dialogues.jsonl"].count(b"\n") == COUNT and b'"interrupted": true' in made["dialogues.jsonl"]
    return made


def assert_no_key(folder: Path, *texts: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
            assert json.dumps(KEY)[1:-1].encode() not in path.read_bytes(), path
    assert not any(KEY in text for text in texts)


def test_a_flaky_and_hostile_server_changes_nothing(
    tmp_path: Path, unbroken: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    met: set[str] = set()

    def plan(request: dict) -> list[str]:
        faults = flaky_plan(request)
        met.update(faults)
        return faults

    with chat_server(plan) as server:
        run_synthesize(words(server, tmp_path / "out"))
        assert met == set(FAULTS)  # every fault was met
        assert server.requests > COUNT + 20
        # "odd usage" is a good reply as well: each request was paid for once.
        assert len(server.answered) == COUNT and set(server.answered.values()) == {1}
    assert files(tmp_path / "out") == unbroken
    told = capsys.readouterr()
    assert_no_key(tmp_path, told.out, told.err)


def test_a_budget_holds_and_a_larger_one_goes_on(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    with chat_server(flaky_plan) as server:
        for requests in (0, 13, 30):
            with pytest.raises(DataError, match=f"--budget.requests {requests}.*is used up"):
                run_synthesize(words(server, out, "--budget.requests", str(requests)))
            lines = (tmp_path / "out.ledger" / REPLIES).read_text().splitlines()
            assert sum("most" in json.loads(line) for line in lines) == requests
            assert requests - 2 <= server.requests <= requests  # a busy machine may lose one on its way
        run_synthesize(words(server, out))
        assert len(server.answered) == COUNT and set(server.answered.values()) == {1}
    assert files(out) == unbroken


def test_a_budget_of_money_holds_by_what_the_server_counts(tmp_path: Path) -> None:
    prices = ["--budget.price-in", "1", "--budget.price-out", "10"]
    with chat_server() as server:
        with pytest.raises(DataError, match="is used up"):
            run_synthesize(words(server, tmp_path / "out", "--budget.money", "0.02", *prices))
        spent = server.requests * (50 * 1 + 100 * 10) / 1e6  # what the server says each took
        assert 0.005 < spent <= 0.02


def test_killed_and_started_again_it_gives_the_same_bytes(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "tools" / "synthesize.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    logs = ""
    with chat_server(flaky_plan) as server:
        server.pause_s = 0.02
        for kill_at in (9, 25):
            reached = threading.Event()
            server.on_request = lambda number, at=kill_at, event=reached: event.set() if number >= at else None
            process = subprocess.Popen(
                [*command, *words(server, out)], env=environment, stderr=subprocess.PIPE, text=True
            )
            assert reached.wait(60)
            os.kill(process.pid, signal.SIGKILL)
            logs += process.communicate()[1]
            assert process.returncode == -signal.SIGKILL and not out.exists()
        server.on_request = lambda number: None
        done = subprocess.run([*command, *words(server, out)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        # Asked again is only what was on its way at a kill.
        assert sum(server.answered.values()) - COUNT <= 2 * 8
    assert files(out) == unbroken
    assert_no_key(tmp_path, logs, done.stderr)
    # The ledger knows the requests of all three processes, by their worst case where the kill came between.
    lines = [json.loads(line) for line in (tmp_path / "out.ledger" / REPLIES).read_text().splitlines()]
    assert len({line["n"] for line in lines if "most" in line}) >= server.requests - 16


def test_another_run_with_that_ledger_costs_nothing(tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    with chat_server() as server:
        run_synthesize(words(server, tmp_path / "one", "--ledger", str(tmp_path / "ledger")))
        asked = server.requests
        strict = ("--ledger", str(tmp_path / "ledger"), "--filters.near-duplicate", "0.9")
        run_synthesize(words(server, tmp_path / "two", *strict))
        assert server.requests == asked == COUNT
    assert files(tmp_path / "one") == unbroken
    assert files(tmp_path / "two")["dialogues.jsonl"] == unbroken["dialogues.jsonl"]


def test_a_server_that_is_gone_ends_the_run_and_the_same_command_goes_on(
    tmp_path: Path, unbroken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, is_down = tmp_path / "out", False

    def plan(request: dict) -> list[str]:
        return ["500"] * 99 if is_down else []

    with chat_server(plan) as server:

        def fail_later(number: int) -> None:
            nonlocal is_down
            is_down = number > 15

        server.on_request = fail_later
        with pytest.raises(DataError, match="the writer is gone.*status 500.*run the same command again"):
            run_synthesize(words(server, out, "--endpoint.tries", "2"))
        assert (tmp_path / "out.part").exists() and not out.exists()
        server.on_request, is_down = (lambda number: None), False
        server.tries.clear()
        run_synthesize(words(server, out, "--endpoint.tries", "2"))
    assert files(out) == unbroken


def test_one_request_that_always_fails_is_set_aside_and_counted(tmp_path: Path) -> None:
    def plan(request: dict) -> list[str]:
        return {3: ["500"] * 99, 5: ["400"]}.get(request["seed"], [])

    with chat_server(plan) as server:
        run_synthesize(words(server, tmp_path / "out", "--endpoint.tries", "2"))
    header = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert header["dialogues"] == COUNT
    assert header["rejects"] == {"no reply from the writer": 1, "refused by the endpoint": 1}


def test_bad_replies_are_counted_by_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    def turns(*texts: str) -> str:
        roles = ("user", "assistant")
        return json.dumps({"turns": [{"role": roles[n % 2], "text": text} for n, text in enumerate(texts)]})

    bad = {
        0: turns("Tell me.", "So it went on and on with it. " * 200),
        1: "no json at all",
        2: turns("Sag mir etwas.", "Der Mond zieht das Wasser an, und so steigt das Meer zwei mal am Tag sehr hoch."),
        3: turns("Tell me.", f"The key is {KEY} and that is that."),
        4: "",
        5: json.dumps({"turns": [{"role": "system", "text": "x"}]}),
    }
    with chat_server() as server:
        server.reply = lambda request: bad.get(request["seed"]) if request["seed"] in bad else dialogue_for(request)
        run_synthesize(words(server, tmp_path / "out", "--shape.interruptions", "0"))
    header = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert header["dialogues"] == COUNT
    assert header["rejects"]["turn too long"] == 1 and header["rejects"]["not English"] == 1
    assert header["rejects"]["malformed dialogue"] == 2 and header["rejects"]["empty reply"] == 1
    assert_no_key(tmp_path)


def test_no_interruption_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    """A model may like to interrupt; the share of dialogues with an interruption is the user's to say."""

    def reply(request: dict) -> str:
        text = dialogue_for(request)
        is_cut = request["seed"] % 4 == 0 and text.count('"assistant"') > 1
        return (
            text.replace('{"role": "assistant",', '{"role": "assistant", "interrupted": true,', 1) if is_cut else text
        )

    with chat_server() as server:
        server.reply = reply
        run_synthesize(words(server, tmp_path / "out", "--shape.interruptions", "0"))
    header = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert (header["dialogues"], header["interruptions"]) == (COUNT, 0)
    assert set(header["rejects"]) == {"unwanted interruption"} and header["rejects"]["unwanted interruption"] > 2


@pytest.mark.parametrize("status", ["200", "202", "204"])
def test_an_empty_success_is_tried_again(status: str, tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    with chat_server(lambda request: [f"{status} empty"] if request["seed"] % 3 == 0 else []) as server:
        run_synthesize(words(server, tmp_path / "out"))
        assert server.requests == COUNT + 14 and set(server.answered.values()) == {1}
    assert files(tmp_path / "out") == unbroken


def test_a_service_that_is_empty_each_time_is_gone(tmp_path: Path) -> None:
    with chat_server(lambda request: ["204 empty"] * 99) as server:
        told = "the writer is gone.*status 204 with nothing in it, the last of 2 tries; run the same command again"
        with pytest.raises(DataError, match=told):
            run_synthesize(words(server, tmp_path / "out", "--endpoint.tries", "2"))


@pytest.mark.parametrize(
    ("fault", "told"),
    [("401", "status 401.*check the key in .TEST_LLM_KEY"), ("404", "status 404.*ends in /v1"),
     ("302", "status 302.*redirects are not followed"), ("403 with the key", "status 403")],
    ids=lambda value: value[:3],
)  # fmt: skip
def test_what_no_try_can_mend_ends_the_run_at_once(
    tmp_path: Path, fault: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server(lambda request: [fault] * 99) as server:
        with pytest.raises(DataError, match=told) as caught:
            run_synthesize(words(server, tmp_path / "out"))
        assert server.requests <= 16  # those that were on their way
    assert_no_key(tmp_path, str(caught.value), capsys.readouterr().err)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--endpoint.key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE: not set"),
        (["--endpoint.key-env", KEY], "never give the key itself"),
        (["--endpoint.url", f"http://me:{KEY[:5]}@host/v1"], "keys come by --endpoint.key-env"),
        (["--endpoint.url", "ftp://host"], "not an http or https address"),
        (["--endpoint.tries", "0"], "--endpoint.tries 0"),
        (["--budget.money", "3"], "--budget.price-in"),
        (["--writer", "grammar"], "for --writer endpoint"),
    ],
    ids=["unset", "the key", "user", "scheme", "tries", "prices", "grammar"],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    tmp_path: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server() as server:
        with pytest.raises(DataError, match=told) as caught:
            run_synthesize(words(server, tmp_path / "out", *more))
        assert server.requests == 0 and KEY not in str(caught.value) and KEY[:5] not in str(caught.value)


def test_a_server_that_counts_more_than_it_may_is_not_believed(tmp_path: Path) -> None:
    with chat_server(lambda request: ["too much"]) as server:
        with pytest.raises(DataError, match="no budget holds with such counts"):
            run_synthesize(words(server, tmp_path / "out"))


def test_an_exchange_ends_in_time_however_slowly_bytes_drip() -> None:
    with chat_server(lambda request: ["drip"] * 9) as server:
        begin = time.monotonic()
        with pytest.raises(NoAnswer, match="within 0.3 s") as caught:
            post(Address.parse(server.url), "/x", b"{}", None, timeout_s=0.3, most_bytes=1000)
        assert caught.value.was_sent and time.monotonic() - begin < 1.0


def test_a_refused_connection_was_not_sent() -> None:
    with chat_server() as server:
        address = Address.parse(server.url)
    with pytest.raises(NoAnswer) as caught:
        post(address, "/x", b"{}", None, timeout_s=1, most_bytes=1000)
    assert not caught.value.was_sent


def test_the_key_is_hidden_in_all_its_spellings() -> None:
    escaped = "".join(f"\\u{ord(sign):04x}" for sign in KEY)
    mixed = "\\u0073k-Test\\/0123456789abcdef\\u002BXYZ"  # a server may escape what it likes, and leave the rest
    within = mixed.replace("\\", "\\\\")  # JSON quoted in JSON
    other = "s&#107;-Test&#x2F;0123456789abcdef%2bXYZ"
    plain = (KEY, KEY.replace("/", "\\/"), "sk-Test%2F0123456789abcdef%2BXYZ", escaped)
    for form in (*plain, escaped.upper().replace("\\U", "\\u"), mixed, within, other):
        assert without_key(f"a {form} b".encode(), KEY) == b"a *** b"
    begin = time.process_time()
    for hostile in (b"\\" * 1_000_000, b"&#" + b"0" * 1_000_000, KEY[:-1].encode() * 40_000):
        assert without_key(hostile, KEY) == hostile
    assert time.process_time() - begin < 5
