"""Clients that are slow, too many, or do not speak HTTP: over a real socket."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from jobs import database, keys
from jobs.api.app import create_app
from jobs.api.auth import first_repeated
from jobs.api.edge import READ_RATE, READ_SECONDS, patience_left
from jobs.hints import Hints
from jobs.settings import Settings
from tests.jobs import making
from tests.jobs.api.conftest import served


@contextmanager
def connection(address: str) -> Iterator[socket.socket]:
    place = urlsplit(address)
    assert place.hostname is not None
    with socket.create_connection((place.hostname, place.port or 0), timeout=20) as opened:
        yield opened


def answer_to(opened: socket.socket, sent: bytes) -> bytes:
    """All that comes until the server closes; where it had more to read, that looks like a reset."""
    found = b""
    with suppress(ConnectionResetError):
        opened.sendall(sent)
        while piece := opened.recv(65_536):
            found += piece
    return found


def error_in(answer: bytes) -> dict[str, object]:
    error = orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return dict(error)


def test_a_body_that_stops_arriving_is_given_up_and_nothing_of_it_stays(
    address: str, key: str, ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.api.edge.READ_SECONDS", 0.2)
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\ncontent-length: 3000000\r\n"
        "content-type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    )
    with connection(address) as opened:
        answer = answer_to(opened, head.encode() + b"x" * 2_500_000)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"x-request-id: req_" in answer
    assert "too slowly" in str(error_in(answer)["message"])
    left = (
        "SELECT (SELECT count(*) FROM file) + (SELECT count(*) FROM file_part) + (SELECT count(*) FROM upload_permit)"
    )
    deadline = time.monotonic() + 10
    while making.scalar(ledger, left) != 0:
        assert time.monotonic() < deadline, "what had arrived is still there"


class Counted(str):
    """A text that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)  # type: ignore[arg-type]

    __hash__ = str.__hash__


def test_a_name_that_comes_twice_is_found_in_one_pass() -> None:
    """An address has room for thousands of names, and is read before its key is known."""
    names = [Counted(number) for number in range(2_000)]
    assert first_repeated(names) is None
    assert Counted.compared < 10 * len(names)
    assert first_repeated([*names, Counted(7), Counted(5)]) == "7"


def trickle(opened: socket.socket, byte: bytes) -> bytes:
    """Send a byte now and then, until the server answers or closes; what it answered."""
    opened.settimeout(0.02)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(TimeoutError, ConnectionResetError):
            opened.sendall(byte)
            first = opened.recv(65_536)
            opened.settimeout(20)
            return first + answer_to(opened, b"")
    pytest.fail("it was not cut off")


def test_a_body_of_which_a_byte_comes_now_and_then_is_given_up(
    address: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.api.edge.READ_SECONDS", 0.5)
    head = (
        f"POST /v1/batches HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\ncontent-length: 3000000\r\n"
        "content-type: application/json\r\n\r\n"
    )
    with connection(address) as opened:
        opened.sendall(head.encode())
        answer = trickle(opened, b" ")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert error_in(answer)["type"] == "invalid_request_error"


def test_a_head_of_which_a_byte_comes_now_and_then_is_cut_off(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.api.connections.HEAD_SECONDS", 0.5)
    with connection(address) as opened:
        opened.sendall(b"GET /healthz HTTP/1.1\r\nx-long: ")
        assert trickle(opened, b"x") == b""


def test_patience_is_used_up_by_waiting_and_filled_up_by_what_comes() -> None:
    assert patience_left(10, waited_seconds=4, size=0) == 6
    assert patience_left(10, waited_seconds=4, size=2 * READ_RATE) == 8
    assert patience_left(10, waited_seconds=4, size=1 << 40) == READ_SECONDS, "nothing is saved up beyond"


def test_a_body_that_is_refused_and_never_ends_is_cut_off(
    address: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.api.connections.HEAD_SECONDS", 0.2)
    head = f"POST /v1/files HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\ncontent-length: 5000000\r\n\r\n"
    with connection(address) as opened:
        opened.sendall(head.encode())
        refused = opened.recv(65_536)
        refused += answer_to(opened, b"x" * 1_000_000)
    assert refused.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nhost: here\r\n"])
def test_a_request_that_is_never_begun_or_stays_half_a_head_is_cut_off(
    address: str, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("jobs.api.connections.HEAD_SECONDS", 0.2)
    with connection(address) as opened:
        assert answer_to(opened, sent) == b""


def test_a_second_request_may_not_stay_half_a_head_either(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.api.connections.HEAD_SECONDS", 0.2)
    with connection(address) as opened:
        opened.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n")
        first = opened.recv(65_536)
        assert b"HTTP/1.1" not in answer_to(opened, b"GET /healthz")
    assert first.startswith(b"HTTP/1.1 200 OK")


def test_a_request_may_take_longer_than_its_head(
    address: str, client: TestClient, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.api.connections.HEAD_SECONDS", 0.2)
    released = threading.Event()

    def slow() -> Iterator[bytes]:
        yield b'{"input_file_id": "file-x", '
        released.wait(1)
        yield b'"endpoint": "/v1/chat/completions", "completion_window": "24h"}'

    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    assert httpx.post(f"{address}/v1/batches", content=slow(), headers=headers).status_code == 200


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["without an end", "at once"])
@pytest.mark.parametrize("start", [b"GET /v1/models?", b"GET /v1/models HTTP/1.1\r\nhost: here\r\nx-long: "])
def test_a_head_that_is_too_large_is_refused(address: str, start: bytes, end: bytes) -> None:
    with connection(address) as opened:
        answer = answer_to(opened, start + b"x" * 100_000 + end)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert error_in(answer)["message"] == "The head of the request is larger than 65536 bytes."


def test_what_is_not_http_is_refused_with_the_envelope(address: str) -> None:
    with connection(address) as opened:
        answer = answer_to(opened, b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert error_in(answer)["message"] == "Invalid HTTP request received."


def test_a_client_who_takes_nothing_of_its_answer_is_cut_off(
    address: str, key: str, ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.api.connections.TAKE_SECONDS", 0.2)
    size = 40_000_000  # more than the sockets' buffers hold
    file = making.upload(ledger, b"x" * size)
    head = f"GET /v1/files/{file.id}/content HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\n\r\n"
    with connection(address) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        opened.sendall(head.encode())
        deadline = time.monotonic() + 10
        while making.scalar(ledger, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'") > 1:
            assert time.monotonic() < deadline
        threading.Event().wait(1)  # the client does something else
        received = len(answer_to(opened, b""))
    assert received < size


@pytest.mark.parametrize("header", ["", "connection: close\r\n"])
def test_a_client_who_leaves_the_rest_of_its_answer_is_cut_off(
    app: FastAPI, key: str, ledger: Engine, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    monkeypatch.setattr("jobs.api.connections.TAKE_SECONDS", 0.2)
    file = making.upload(ledger, b"x" * 60_000)  # less than the server waits for a client to take
    request = f"GET /v1/files/{file.id}/content HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\n{header}\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as opened:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as little as there can be
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with served(app, listening, timeout_keep_alive=0) as server:
            opened.connect(listening.getsockname())
            opened.sendall(request.encode())
            assert opened.recv(12) == b"HTTP/1.1 200"
            deadline = time.monotonic() + 20
            while server.server_state.connections:
                assert time.monotonic() < deadline, "the connection is kept"
                time.sleep(0.01)
            assert len(answer_to(opened, b"")) < 60_000


def test_a_project_that_asks_for_all_leaves_room_for_others(ledger: Engine, key: str, hints: Hints) -> None:
    app = create_app(ledger, hints, Settings(requests_at_once=8))
    other = database.run(ledger, lambda c: keys.create(c, name="test", project_id="other"))
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\n"

    def status(key: str) -> int:
        return httpx.get(f"{address}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

    with socket.create_server(("127.0.0.1", 0)) as listening, served(app, listening):
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with ExitStack() as waiting:
            for _ in range(7):
                opened = waiting.enter_context(connection(address))
                opened.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            deadline = time.monotonic() + 20
            while making.scalar(ledger, "SELECT count(*) FROM batch WHERE is_direct") != 7:
                assert time.monotonic() < deadline
            assert (status(key), status(other)) == (429, 200)
        while status(key) != 200:
            assert time.monotonic() < deadline, "those who left still count"


def test_more_requests_at_once_than_are_answered_are_told_to_come_again(ledger: Engine, key: str, hints: Hints) -> None:
    app: FastAPI = create_app(ledger, hints, Settings(requests_at_once=1))
    inside, released = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert released.wait(10)

    app.add_api_route("/held", hold, methods=["GET"])
    with TestClient(app) as client:
        held = threading.Thread(target=lambda: client.get("/held"))
        held.start()
        assert inside.wait(10)
        refused = client.get("/healthz")
        released.set()
        held.join()
        assert client.get("/healthz").status_code == 200
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "2"
    assert refused.headers["x-request-id"].startswith("req_")
    assert refused.json()["error"]["type"] == "server_error"


def test_slow_downloads_keep_no_transaction_open(address: str, key: str, ledger: Engine) -> None:
    file = making.upload(ledger, b"x" * (40 << 20))
    request = f"GET /v1/files/{file.id}/content HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\n\r\n".encode()
    with ExitStack() as ending:
        lines = [ending.enter_context(connection(address)) for _ in range(5)]
        for line in lines:
            line.sendall(request)
            assert line.recv(12) == b"HTTP/1.1 200"
        query = """
            SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
               AND backend_type = 'client backend'
        """
        deadline = time.monotonic() + 20
        while making.scalar(ledger, query) != 0:
            assert time.monotonic() < deadline, "a client who takes its time holds a transaction"
            time.sleep(0.01)
