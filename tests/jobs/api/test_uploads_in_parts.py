"""Uploads in parts: what becomes a file, what is refused, and that nothing stays of the rest."""

import hashlib
import itertools

import pytest
from sqlalchemy import text

from jobs import database, files, uploads
from jobs.contract import limits
from tests.jobs import making

CONTENT = bytes(range(256)) * 12_000  # three pieces and some
ORDER = {"bytes": len(CONTENT), "filename": "in.jsonl", "purpose": "batch", "mime_type": "application/jsonl"}
CUTS = (0, 1_500_000, 1_500_001, len(CONTENT))


def begin(client, **change) -> str:
    answer = client.post("/v1/uploads", json={**ORDER, **change})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def add(client, upload_id: str, content: bytes):
    return client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("blob", content)})


def complete(client, upload_id: str, part_ids: list[str], **order):
    return client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": part_ids, **order})


def add_all(client, upload_id: str) -> list[str]:
    """The parts of CONTENT, the last sent first; their ids in the order of the content."""
    pieces = [CONTENT[start:stop] for start, stop in itertools.pairwise(CUTS)]
    return [add(client, upload_id, piece).json()["id"] for piece in reversed(pieces)][::-1]


def held(ledger) -> tuple[int, int]:
    """Files and pieces of files that are stored."""
    return (
        making.scalar(ledger, "SELECT count(*) FROM file"),
        making.scalar(ledger, "SELECT count(*) FROM file_part"),
    )


def test_parts_become_one_file_in_the_order_of_their_ids(client, ledger):
    upload_id = begin(client)
    part_ids = add_all(client, upload_id)
    add(client, upload_id, b"never named")
    made = complete(client, upload_id, part_ids, md5=hashlib.md5(CONTENT).hexdigest().upper()).json()
    assert (made["status"], made["file"]["bytes"], made["file"]["purpose"]) == ("completed", len(CONTENT), "batch")
    assert made["file"]["expires_at"] == made["file"]["created_at"] + limits.FILE_LIFETIME_SECONDS
    path = f"/v1/files/{made['file']['id']}/content"
    assert client.get(path).content == CONTENT
    for start in (0, *CUTS[1:-1], 1_048_576, len(CONTENT) - 1):
        assert client.get(path, headers={"range": f"bytes={start}-{start + 9}"}).content == CONTENT[start : start + 10]
    assert held(ledger)[0] == 1
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_an_upload_shows_every_key_of_the_contract(client):
    answer = client.post("/v1/uploads", json=ORDER).json()
    assert set(answer) == {
        "id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "file",
    }  # fmt: skip
    assert (answer["status"], answer["file"]) == ("pending", None)
    assert answer["expires_at"] == answer["created_at"] + 3600


def test_completing_twice_is_one_file_and_otherwise_a_conflict(client, ledger):
    upload_id = begin(client)
    part_ids = add_all(client, upload_id)
    first, second = (complete(client, upload_id, part_ids).json() for _ in range(2))
    assert first == second
    other = complete(client, upload_id, part_ids[::-1])
    assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")
    assert held(ledger)[0] == 1


@pytest.mark.parametrize(
    ("choose", "order", "param"),
    [
        (lambda ids: ids[:2], {}, "part_ids"),
        (lambda ids: [*ids[:2], "part_other"], {}, "part_ids[2]"),
        (lambda ids: [ids[0], *ids], {}, "part_ids[1]"),
        (lambda ids: ids[::-1], {"md5": hashlib.md5(CONTENT).hexdigest()}, "md5"),
        (lambda ids: ids, {"md5": 5}, "md5"),
        (lambda ids: [], {}, "part_ids"),
    ],
)
def test_what_is_not_the_whole_upload_is_refused_and_may_be_tried_again(client, choose, order, param):
    upload_id = begin(client)
    part_ids = add_all(client, upload_id)
    refused = complete(client, upload_id, choose(part_ids), **order)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert complete(client, upload_id, part_ids).status_code == 200


def test_a_cancelled_upload_keeps_nothing_and_takes_nothing(client, ledger):
    upload_id = begin(client)
    part_ids = add_all(client, upload_id)
    for _ in range(2):
        assert client.post(f"/v1/uploads/{upload_id}/cancel").json()["status"] == "cancelled"
    assert held(ledger) == (0, 0)
    assert add(client, upload_id, b"x").status_code == complete(client, upload_id, part_ids).status_code == 409
    assert held(ledger) == (0, 0)


def test_a_completed_upload_cannot_be_cancelled(client):
    upload_id = begin(client)
    complete(client, upload_id, add_all(client, upload_id))
    assert client.post(f"/v1/uploads/{upload_id}/cancel").status_code == 409


def test_an_expired_upload_takes_nothing_and_is_swept(client, ledger):
    upload_id = begin(client)
    part_ids = add_all(client, upload_id)
    database.run(ledger, lambda c: c.execute(text("UPDATE upload SET expires_at = now()")))
    refused = complete(client, upload_id, part_ids)
    assert (refused.status_code, "'expired'" in refused.json()["error"]["message"]) == (409, True)
    assert add(client, upload_id, b"x").status_code == 409
    assert database.run(ledger, uploads.sweep) == 0, "a transaction may be at it"
    database.run(ledger, lambda c: c.execute(text("UPDATE upload SET expires_at = now() - interval '11 minutes'")))
    assert database.run(ledger, uploads.sweep) == len(part_ids)
    assert held(ledger) == (0, 0)
    assert database.run(ledger, uploads.sweep) == 0
    database.run(ledger, lambda c: c.execute(text("UPDATE upload SET expires_at = now() - interval '2 days'")))
    assert database.run(ledger, uploads.sweep) == 1


def sweep_by_the_worst_plan(connection):
    """That looks for some parts again for each file there is."""
    for kind in ("hashjoin", "mergejoin", "hashagg", "sort", "material", "indexscan", "bitmapscan", "memoize"):
        connection.execute(text(f"SET LOCAL enable_{kind} = off"))
    return uploads.sweep(connection)


def test_the_parts_of_many_expired_uploads_are_all_swept(client, ledger):
    """A sweep takes a few parts, however it is planned; the next must not look for them again."""
    part_ids = [part_id for _ in range(8) for part_id in add_all(client, begin(client))]
    database.run(ledger, lambda c: c.execute(text("UPDATE upload SET expires_at = now() - interval '11 minutes'")))
    swept = []
    while not swept or swept[-1]:
        swept.append(database.run(ledger, sweep_by_the_worst_plan))
    assert (sum(swept), held(ledger)) == (len(part_ids), (0, 0))
    assert len(swept) > 2


def test_an_upload_that_is_completed_in_the_moment_it_expires_is_whole(client, ledger):
    upload_id = begin(client)
    part_ids = add_all(client, upload_id)
    with ledger.begin() as late:  # its clock stands still
        late.execute(text("SELECT now()"))
        database.run(ledger, lambda c: c.execute(text("UPDATE upload SET expires_at = clock_timestamp()")))
        database.run(ledger, uploads.sweep)
        done = uploads.complete(late, "default", upload_id, part_ids)
    assert len(b"".join(files.read(ledger, done.file_id))) == done.size_bytes


def test_an_upload_of_another_project_does_not_exist(client, stranger):
    upload_id = begin(client)
    part_ids = add_all(client, upload_id)
    for answer in (
        add(stranger, upload_id, b"x"),
        complete(stranger, upload_id, part_ids),
        stranger.post(f"/v1/uploads/{upload_id}/cancel"),
    ):
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "id")


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"bytes": 0}, "integer_below_min_value", "bytes"),
        ({"bytes": 4 * 1024 * 1024}, "integer_above_max_value", "bytes"),
        ({"bytes": "5"}, "invalid_type", "bytes"),
        ({"filename": "a.csv"}, None, None),
        ({"filename": "a\0.jsonl"}, "invalid_value", "filename"),
        ({"purpose": "art"}, "invalid_value", "purpose"),
        ({"expires_after": {"anchor": "created_at", "seconds": 5}}, "integer_below_min_value", "expires_after.seconds"),
    ],
)
def test_an_unfit_upload_is_refused(client, change, code, param):
    answer = client.post("/v1/uploads", json={**ORDER, **change})
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (400, code, param)


def test_a_part_without_bytes_or_of_another_name_is_refused(client, ledger):
    upload_id = begin(client)
    assert add(client, upload_id, b"").json()["error"]["param"] == "data"
    other = client.post(f"/v1/uploads/{upload_id}/parts", files={"file": ("blob", b"x")})
    assert other.json()["error"]["code"] == "unknown_parameter"
    assert held(ledger) == (0, 0)
