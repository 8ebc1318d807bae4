"""However large an upload and however slow its client, the server holds a few pieces of it; so of a download."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

from sqlalchemy import Engine

from jobs import database, keys
from jobs.keys import Limits
from tests.contract.conftest import Server
from tests.jobs import making
from tests.memory import needs_proc, peak_kb

SIZE = 200_000_000
BLOCK = (b'{"custom_id": "' + b"x" * 980 + b'"}\n') * 1000
BOUNDARY = "memory"
RISE_KB_MAX = 40_000
DAWDLERS = 20
UPLOAD_KB_MAX, DOWNLOAD_KB_MAX = 3 * 1024, 8 * 1024  # of each; docs/operations.md says so
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="large.jsonl"\r\n\r\n'
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


def blocks(count: int) -> Iterator[bytes]:
    yield HEAD
    for _ in range(count):
        yield BLOCK
    yield TAIL


def upload(server: Server, key: str, count: int) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
        "Content-Length": str(len(HEAD) + count * len(BLOCK) + len(TAIL)),
    }
    connection.request("POST", "/v1/files", body=blocks(count), headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()


@needs_proc
def test_an_upload_of_200_mb_takes_less_than_40_mb_of_memory(server: Server, key: str) -> None:
    upload(server, key, count=5)  # what a first upload loads stays
    before = peak_kb(server.pid)
    upload(server, key, count=SIZE // len(BLOCK))
    assert peak_kb(server.pid) - before < RISE_KB_MAX


def connected(server: Server) -> socket.socket:
    place = urlsplit(server.url)
    assert place.hostname
    return socket.create_connection((place.hostname, place.port or 0), timeout=60)


@needs_proc
def test_clients_that_stop_in_the_middle_of_uploads_cost_a_few_pieces_each_and_others_nothing(
    server: Server, ledger: Engine
) -> None:
    key = database.run(ledger, lambda c: keys.create(c, name="many", limits=Limits(uploads_at_once=DAWDLERS + 1)))
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\ncontent-length: {SIZE}\r\n"
        f"content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    ).encode()
    upload(server, key, count=5)
    before = peak_kb(server.pid)
    with ExitStack() as ending:
        for _ in range(DAWDLERS):
            opened = ending.enter_context(connected(server))
            opened.sendall(head + HEAD + BLOCK * 8)
        upload(server, key, count=5)
        assert peak_kb(server.pid) - before < DAWDLERS * UPLOAD_KB_MAX


@needs_proc
def test_clients_that_take_their_time_over_downloads_cost_a_few_pieces_each(
    server: Server, ledger: Engine, key: str
) -> None:
    file = making.upload(ledger, BLOCK * 40)
    request = f"GET /v1/files/{file.id}/content HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {key}\r\n\r\n".encode()
    upload(server, key, count=5)
    before = peak_kb(server.pid)
    with ExitStack() as ending:
        lines = [ending.enter_context(connected(server)) for _ in range(DAWDLERS)]
        for line in lines:
            line.sendall(request)
        for line in lines:
            assert line.recv(12) == b"HTTP/1.1 200"
        upload(server, key, count=5)
        assert peak_kb(server.pid) - before < DAWDLERS * DOWNLOAD_KB_MAX
