"""HEAD gives the headers of GET, over a real server, and nothing else."""

import http.client
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Engine

from jobs import files
from jobs.api.app import ROUTES
from tests.jobs import making

VARYING = {"date", "x-request-id"}


def ask(address: str, method: str, path: str, key: str, **more: str) -> tuple[int, dict[str, str], bytes]:
    """Status, the headers that do not differ from one answer to the next, and the body."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    try:
        connection.request(method, path, headers={"authorization": f"Bearer {key}", **more})
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders() if name.lower() not in VARYING}
        return answer.status, headers, answer.read()
    finally:
        connection.close()


@pytest.fixture
def known(ledger: Engine) -> dict[str, str]:
    file = making.upload(ledger, making.line("a"))
    return {"file_id": file.id, "batch_id": making.create(ledger, file.id).public_id, "model_id:path": "absent"}


@pytest.mark.parametrize("path", [path for method, path, _ in ROUTES if method == "GET"])
def test_head_answers_as_get_without_the_body(address: str, key: str, known: dict[str, str], path: str) -> None:
    for name, value in known.items():
        path = path.replace("{" + name + "}", value)
    status, headers, body = ask(address, "GET", path, key)
    assert body
    assert int(headers["content-length"]) == len(body)
    assert ask(address, "HEAD", path, key) == (status, headers, b"")


def test_head_of_a_content_tells_a_range_and_reads_nothing(
    address: str, key: str, known: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "read", lambda *_, **__: pytest.fail("the file was read"))
    path = f"/v1/files/{known['file_id']}/content"
    status, headers, body = ask(address, "HEAD", path, key, range="bytes=2-5")
    assert (status, headers["content-length"], body) == (206, "4", b"")
    assert headers["content-range"].startswith("bytes 2-5/")


def test_head_asks_for_a_key_where_get_does(address: str, known: dict[str, str]) -> None:
    assert ask(address, "HEAD", "/v1/files", "none")[0] == 401
