"""Uploads: what is kept, what is refused, and that nothing stays of the latter."""

import random
import socket
import threading
import time

import pytest
from psycopg.errors import DiskFull
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError

from jobs import database, files
from jobs.tables import file, file_part

BOUNDARY = "xyz"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
PURPOSE = 'form-data; name="purpose"'
JSONL = 'form-data; name="file"; filename="in.jsonl"'


def form(*parts: tuple[str, bytes]) -> bytes:
    body = b"".join(
        b"--%s\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (BOUNDARY.encode(), disposition.encode(), content)
        for disposition, content in parts
    )
    return body + b"--%s--\r\n" % BOUNDARY.encode()


def post(client, *parts, headers=FORM):
    return client.post("/v1/files", content=form(*parts), headers=headers)


def stored(engine: Engine) -> tuple[int, int]:
    return database.run(
        engine,
        lambda c: (
            c.execute(select(func.count()).select_from(file)).scalar_one(),
            c.execute(select(func.count()).select_from(file_part)).scalar_one(),
        ),
    )


def test_the_fields_may_stand_behind_the_file(client):
    answer = post(
        client,
        (JSONL, b"{}\n"),
        ('form-data; name="expires_after[seconds]"', b"7200"),
        ('form-data; name="expires_after[anchor]"', b"created_at"),
        (PURPOSE, b"batch"),
    )
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["purpose"], made["bytes"]) == ("batch", 3)
    assert made["expires_at"] - made["created_at"] == 7200


def test_a_file_for_another_purpose_never_expires(client):
    answer = post(client, (PURPOSE, b"user_data"), ('form-data; name="file"; filename="a.pdf"', b""))
    assert answer.json()["expires_at"] is None


def test_a_file_of_several_lines_is_taken_whatever_they_are(client):
    assert post(client, (PURPOSE, b"batch"), (JSONL, b"not JSON\nnor this")).status_code == 200


def test_a_file_without_a_name_gets_one(client):
    assert post(client, (PURPOSE, b"batch"), ('form-data; name="file"', b"{}")).json()["filename"] == "upload.jsonl"


def test_content_like_a_boundary_stays_content(client):
    content = b"\r\n--xy\r\n--xyyz\r\n\r\n--" * 100_000
    made = post(client, (PURPOSE, b"batch"), (JSONL, content)).json()
    assert client.get(f"/v1/files/{made['id']}/content").content == content


@pytest.mark.parametrize("size", [0, 1, 1_048_575, 1_048_576, 1_048_577, 3_000_000])
def test_a_file_comes_back_as_it_was_sent(client, size):
    content = random.Random(size).randbytes(size)
    made = post(client, (PURPOSE, b"user_data"), (JSONL, content)).json()
    assert made["bytes"] == size
    assert client.get(f"/v1/files/{made['id']}/content").content == content


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_part_that_cannot_be_stored_ends_the_upload_and_leaves_nothing(client, ledger, monkeypatch, failing):
    store = files.Writer._store

    def store_some(writer, content):
        if writer._parts == failing:
            raise DBAPIError("INSERT", {}, DiskFull("no room"))
        store(writer, content)

    monkeypatch.setattr(files.Writer, "_store", store_some)
    answer = post(client, (PURPOSE, b"batch"), (JSONL, b"x" * 3_000_000))
    assert answer.status_code == 503, answer.text
    assert stored(ledger) == (0, 0)


@pytest.mark.parametrize(
    ("parts", "code", "words"),
    [
        ([(JSONL, b"{}")], "missing_required_parameter", "Missing required parameter: 'purpose'."),
        ([(PURPOSE, b"batch")], "missing_required_parameter", "Missing required parameter: 'file'."),
        ([(PURPOSE, b"art"), (JSONL, b"{}")], "invalid_value", "'batch', 'assistants'"),
        ([(PURPOSE, b"batch"), (JSONL, b"")], None, "empty"),
        ([(PURPOSE, b"batch"), ('form-data; name="file"; filename="a.csv"', b"1")], None, "Must be .jsonl"),
        ([(PURPOSE, b"batch"), (JSONL, b"not JSON\n\n")], None, "Invalid file format for Batch API. Must be .jsonl"),
        ([(PURPOSE, b"batch"), (JSONL, b"\n \n")], None, "Must be .jsonl"),
        ([(PURPOSE, b"batch"), (JSONL, b"{}"), (JSONL, b"{}")], "invalid_value", "Duplicate"),
        ([('form-data; name="colour"', b"red")], "unknown_parameter", "colour"),
        ([("form-data", b"red")], None, "no name"),
        ([(PURPOSE, b"batch"), ('form-data; name="file"; filename="a\0.jsonl"', b"{}")], "invalid_value", "U+0000"),
        (
            [(PURPOSE, b"batch"), (f'form-data; name="file"; filename="{"a" * 300}.jsonl"', b"{}")],
            "string_above_max_length",
            "got a string with length 306",
        ),
        (
            [(PURPOSE, b"batch"), (JSONL, b"{}"), ('form-data; name="expires_after[anchor]"', b"created_at")],
            "missing_required_parameter",
            "'expires_after.seconds'",
        ),
        (
            [
                (PURPOSE, b"batch"),
                (JSONL, b"{}"),
                ('form-data; name="expires_after[anchor]"', b"created_at"),
                ('form-data; name="expires_after[seconds]"', b"60"),
            ],
            "integer_below_min_value",
            "Expected a value >= 3600, but got 60 instead.",
        ),
    ],
)
def test_an_unfit_form_is_refused_by_name_and_leaves_nothing(client, ledger, parts, code, words):
    answer = post(client, *parts)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    assert words in answer.json()["error"]["message"]
    assert stored(ledger) == (0, 0)


def test_a_form_that_breaks_off_is_refused_and_leaves_nothing(client, ledger):
    whole = form((PURPOSE, b"batch"), (JSONL, b"x" * 2_500_000))
    answer = client.post("/v1/files", content=whole[:-8], headers=FORM)
    assert (answer.status_code, "before its last boundary" in answer.text) == (400, True)
    assert stored(ledger) == (0, 0)


def test_a_refusal_after_parts_were_stored_leaves_nothing(client, ledger):
    answer = post(client, (JSONL, b"x" * 2_500_000), (PURPOSE, b"art"))
    assert answer.status_code == 400
    assert stored(ledger) == (0, 0)


@pytest.mark.parametrize("told", [True, False])
def test_a_file_over_the_limit_is_refused_and_leaves_nothing(client, ledger, told):
    whole = form((PURPOSE, b"batch"), (JSONL, b"x" * 3_200_000))
    answer = client.post("/v1/files", content=whole if told else iter([whole]), headers=FORM)
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "invalid_request_error")
    assert stored(ledger) == (0, 0)


def test_a_field_over_the_limit_is_refused(client):
    assert post(client, (PURPOSE, b"x" * 5_000)).status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 415),
        ({"content-type": "multipart/form-data"}, 415),
        ({"content-type": f"multipart/form-data; boundary={'x' * 1000}"}, 400),
        ({**FORM, "content-encoding": "gzip"}, 415),
    ],
)
def test_a_body_that_is_no_plain_form_is_refused(client, headers, status):
    answer = post(client, (PURPOSE, b"batch"), (JSONL, b"{}"), headers=headers)
    assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "param", "code"})


def test_a_client_that_leaves_mid_upload_leaves_nothing(address, key, ledger):
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 3000000\r\n"
    head += f"content-type: {FORM['content-type']}\r\n\r\n"
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(
            head.encode() + form((PURPOSE, b"batch"), (JSONL, b"x" * 2_500_000)).removesuffix(b"--xyz--\r\n")
        )
        _wait_for(lambda: stored(ledger)[1] > 0)
    _wait_for(lambda: stored(ledger) == (0, 0))


def _wait_for(is_so) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline, "nothing came of it"
        threading.Event().wait(0.01)
