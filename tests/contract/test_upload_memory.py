"""However large an upload, the server holds a few pieces of it."""

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import Server

SIZE = 200_000_000
BLOCK = (b'{"custom_id": "' + b"x" * 980 + b'"}\n') * 1000
BOUNDARY = "memory"
RISE_KB_MAX = 40_000
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


def peak_kb(pid: int) -> int:
    """The most memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_an_upload_of_200_mb_takes_less_than_40_mb_of_memory(server: Server, key: str) -> None:
    upload(server, key, count=5)  # what a first upload loads stays
    before = peak_kb(server.pid)
    upload(server, key, count=SIZE // len(BLOCK))
    assert peak_kb(server.pid) - before < RISE_KB_MAX
