"""Many clients at once, rude ones among them: nobody else notices, nothing stays behind."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from megatron_most.serve.listening import HEAD_S, STALE_S
from tests.serve.partners import Parrot, Server, serving


def until(condition: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_a_hundred_at_once_each_get_their_own_answer() -> None:
    partner, before = Parrot(), threading.active_count()
    with serving(partner) as server, ThreadPoolExecutor(100) as pool:
        texts = [f"request number {n} slow" for n in range(100)]
        answers = list(pool.map(lambda text: server.ask(text, stream=False), texts))
        assert [status for status, _ in answers] == [200] * 100
        assert [answer["choices"][0]["message"]["content"] for _, answer in answers] == texts
        assert max(partner.batches) == 8 and sum(partner.batches) == 100
        health = json.loads(server.send("GET", "/health")[2])
        assert health == {"status": "ok", "answering": 0, "waiting": 0}
    until(lambda: threading.active_count() <= before)


def test_more_than_may_wait_are_told_to_come_again() -> None:
    with serving(Parrot(), waiting=3, rows=1) as server, ThreadPoolExecutor(20) as pool:
        found = list(
            pool.map(lambda n: server.post({"messages": [{"role": "user", "content": "slow " * 5}]}), range(20))
        )
        codes = [status for status, _, _ in found]
        assert set(codes) == {200, 503} and codes.count(200) >= 4
        refused = next(headers for status, headers, _ in found if status == 503)
        assert int({name.lower(): value for name, value in refused.items()}["retry-after"]) > 0
        assert server.ask("again")[0] == 200


def test_who_waits_beyond_patience_is_told_to_come_again() -> None:
    with serving(Parrot(), rows=1, patience_s=0.5) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.ask, "slow " * 40)
        until(lambda: json.loads(server.send("GET", "/health")[2])["answering"] == 1)
        status, headers, answer = server.post({"messages": [{"role": "user", "content": "x"}]})
        error = json.loads(answer)["error"]
        assert (status, error["type"]) == (503, "server_overloaded")
        assert error["message"] == "no token came for 0.5 s; try again when the server has less to do"
        assert int({name.lower(): value for name, value in headers.items()}["retry-after"]) > 0
        assert server.stream("x")[-1]["error"] == error
        assert first.result()[0] == 200
        assert server.ask("again")[0] == 200


def test_a_client_that_goes_away_stops_its_answer_and_no_other() -> None:
    partner = Parrot()
    with serving(partner) as server:
        for stream in (True, False):
            connection = server.connect()
            body = {"messages": [{"role": "user", "content": "slow " * 60}], "stream": stream}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            if stream:
                connection.getresponse().read(200)
            time.sleep(0.2)
            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(server.ask, "slow and steady")
                time.sleep(0.1)
                connection.close()
                status, answer = other.result()
            assert status == 200 and answer["choices"][0]["message"]["content"] == "slow and steady"
        until(lambda: partner.cancelled == 2)
        until(lambda: json.loads(server.send("GET", "/health")[2])["answering"] == 0)


def test_clients_that_left_the_queue_take_no_place() -> None:
    partner = Parrot()
    with serving(partner, rows=1, waiting=2) as server:
        connections = []
        for content in ("slow " * 40, "a", "b"):
            connection = server.connect()
            body = json.dumps({"messages": [{"role": "user", "content": content}]})
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            connections.append(connection)
            time.sleep(0.1)
        assert server.ask("full")[0] == 503
        for connection in connections:
            connection.close()
        time.sleep(0.5)
        assert server.ask("free")[0] == 200


def test_a_model_that_fails_fails_its_batch_alone() -> None:
    with serving(Parrot()) as server:
        status, answer = server.ask("boom")
        assert status == 500 and "the model is broken" not in answer["error"]["message"]
        event = server.stream("boom")[-1]
        assert event["error"]["type"] == "server_error"
        assert server.ask("fine")[1]["choices"][0]["message"]["content"] == "fine"


def test_slow_bodies_cut_bodies_and_nonsense_disturb_nobody() -> None:
    with serving(Parrot(), body_s=0.5) as server:
        slow = socket.create_connection(("127.0.0.1", server.port))
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        cut = socket.create_connection(("127.0.0.1", server.port))
        cut.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        cut.close()
        noise = socket.create_connection(("127.0.0.1", server.port))
        noise.sendall(bytes(range(256)) * 10 + b"\r\n\r\n")
        assert server.ask("hello")[0] == 200
        assert b" 408 " in slow.recv(100)
        slow.close()
        noise.close()


def test_heads_that_do_not_end_hold_no_place() -> None:
    def is_closed(client: socket.socket) -> bool:
        client.settimeout(5)
        return client.recv(100) == b""

    with serving(Parrot(), head_s=0.5) as server:
        address = ("127.0.0.1", server.port)
        silent, slow = socket.create_connection(address), socket.create_connection(address)
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        kept = server.connect()
        kept.request("GET", "/health")
        assert kept.getresponse().read()
        assert server.ask("slow " * 5)[0] == 200  # an answer may take longer than a head
        assert is_closed(silent) and is_closed(slow)
        kept.request("GET", "/health")  # the pause between two requests is not a head's
        assert kept.getresponse().read() and kept.sock is not None
        kept.sock.sendall(b"GET /health HTTP/1.1\r\nX-A: ")
        assert is_closed(kept.sock)


def flood(port: int, num: int, source: str) -> list[socket.socket]:
    """Clients of this address that never end their heads."""
    clients = []
    for _ in range(num):
        clients.append(socket.create_connection(("127.0.0.1", port), source_address=(source, 0)))
        clients[-1].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-A: ")
    return clients


def health(server: Server, source: str) -> tuple[int, dict[str, str], bytes]:
    connection = server.connect(source)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_one_clients_open_heads_shut_nobody_out() -> None:
    with serving(Parrot(), waiting=20) as server:  # 144 connections, 36 from one address
        clients = flood(server.port, 400, "127.0.0.2")
        began = time.monotonic()
        assert [server.ask("hello")[0] for _ in range(5)] == [200] * 5
        time.sleep(STALE_S + 0.2)
        assert health(server, "127.0.0.2")[0] == 200  # its own oldest head made room
        assert time.monotonic() - began < HEAD_S / 2
        for client in clients:
            client.close()


def test_more_connections_than_one_addresss_share_are_told_so() -> None:
    with serving(Parrot(), waiting=20) as server:
        kept = [server.connect("127.0.0.2") for _ in range(36)]
        for connection in kept:  # between two requests a connection keeps its place
            connection.request("GET", "/health")
            assert connection.getresponse().read()
        status, headers, answer = health(server, "127.0.0.2")
        assert status == 503 and "36 connections of one address" in json.loads(answer)["error"]["message"]
        assert int(headers["retry-after"]) > 0 and headers["connection"] == "close"
        assert health(server, "127.0.0.3")[0] == 200
        kept.pop().close()
        until(lambda: health(server, "127.0.0.2")[0] == 200)
        kept[0].request("GET", "/health")
        assert kept[0].getresponse().status == 200
        for connection in kept:
            connection.close()


def test_a_body_in_chunks_is_read() -> None:
    with serving(Parrot()) as server:
        whole = json.dumps({"messages": [{"role": "user", "content": "in pieces"}]}).encode()
        connection = server.connect()
        headers = {"Content-Type": "Application/JSON; charset=utf-8", "Transfer-Encoding": "chunked"}
        pieces = (whole[at : at + 7] for at in range(0, len(whole), 7))
        connection.request("POST", "/v1/chat/completions", pieces, headers, encode_chunked=True)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        assert answer.status == 200 and said["choices"][0]["message"]["content"] == "in pieces", said


def test_rates_are_kept_and_told() -> None:
    with serving(Parrot(), requests_a_minute=5) as server:
        codes = [server.ask("x")[0] for _ in range(7)]
        assert codes == [200] * 5 + [429] * 2
        status, headers, _ = server.post({})
        assert status == 429 and int({name.lower(): value for name, value in headers.items()}["retry-after"]) in range(
            1, 14
        )


def test_a_key_is_asked_for_and_other_hosts_are_not_served() -> None:
    body = {"messages": [{"role": "user", "content": "x"}]}
    with serving(Parrot(), key="secret-key", hosts=("localhost", "127.0.0.1")) as server:
        assert server.post(body)[0] == server.post(body, Authorization="Bearer secret-kez")[0] == 401
        assert server.post(body, Authorization="Bearer secret-key")[0] == 200
        assert server.post(body, Authorization="Bearer secret-key", Host="evil.example:80")[0] == 421
        assert server.send("GET", "/", Host="evil.example")[0] == 421
