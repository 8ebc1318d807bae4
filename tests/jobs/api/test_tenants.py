"""Whose objects a key opens: every route with an id in it, against objects of another project in every state."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select, text

from jobs import batches, database, export, intake, keys, results
from jobs.api.app import create_app
from jobs.api.auth import scopes_for
from jobs.batches import Batch
from jobs.hints import Hints
from jobs.keys import Limits, Scope
from jobs.settings import Settings
from jobs.states import TERMINAL, BatchState
from jobs.tables import metadata
from tests.jobs import making

UNKNOWN = {"batch_id": "batch_" + "0" * 32, "file_id": "file-" + "0" * 22, "upload_id": "upload_" + "0" * 32}
SHARED = {"model_id"}  # what belongs to no project
BODIES: dict[str, dict[str, Any]] = {
    "/v1/uploads/{}/parts": {"files": {"data": ("blob", b"x")}},
    "/v1/uploads/{}/complete": {"json": {"part_ids": ["part_" + "0" * 32]}},
}


def routes(app: FastAPI) -> Iterator[tuple[str, str, str]]:
    """Method, path and parameter of every route that names an object of a project."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            for name in set(route.param_convertors) - SHARED:
                assert name in UNKNOWN, f"say here whose {name} is"
                for method in route.methods:
                    yield method, re.sub(r"{" + name + r"(:\w+)?}", "{}", route.path), name


def ask(caller: TestClient, method: str, path: str, object_id: str) -> httpx.Response:
    """A request that is right but for who makes it."""
    return caller.request(method, path.format(object_id), **BODIES.get(path, {}))


def in_state(ledger: Engine, state: BatchState) -> Batch:
    """A batch that came to a state on the way of every batch, with lines that are answered, failed and neither."""
    if state is BatchState.VALIDATING:
        return making.create(ledger, making.upload(ledger, making.line("a")).id)
    if state is BatchState.FAILED:
        return making.ingest(ledger, [b"{}"])
    batch, owner = making.ingest(ledger, [making.line(f"r{n}") for n in range(6)]), making.worker(ledger)
    is_whole = state in (BatchState.FINALIZING, BatchState.COMPLETED)
    for lease in making.claim(ledger, batch, owner, chunks=2 if is_whole else 1):
        first, *others = lease.line_numbers
        stored = [*making.results([first], status=500), *making.results(others)]
        database.run(ledger, partial(results.flush, lease=lease, results=stored))
    if is_whole:
        database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))
    if state in (BatchState.CANCELLING, BatchState.CANCELLED):
        database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    if state is BatchState.EXPIRED:
        database.run(ledger, lambda c: c.execute(text("UPDATE batch SET expires_at = now()")))
        database.run(ledger, batches.expire)
    if state in TERMINAL:
        export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS)
    return making.fetch(ledger, batch)


def objects_of(ledger: Engine, client: TestClient, state: BatchState) -> list[tuple[str, str]]:
    """One of each kind of object, as (parameter, id): a batch in a state with all its files, and a pending upload."""
    batch = in_state(ledger, state)
    assert batch.state is state
    order = {"bytes": 2, "filename": "in.jsonl", "purpose": "batch", "mime_type": "application/jsonl"}
    upload_id = client.post("/v1/uploads", json=order).json()["id"]
    assert ask(client, "POST", "/v1/uploads/{}/parts", upload_id).status_code == 200
    files = [file for file in (batch.input_file_id, batch.output_file_id, batch.error_file_id) if file]
    assert len(files) == (3 if state in TERMINAL - {BatchState.FAILED} else 1)
    return [("batch_id", batch.public_id), ("upload_id", upload_id), *(("file_id", file) for file in files)]


def everything(ledger: Engine) -> dict[str, list[str]]:
    """All rows of all tables, but for when a key was last used."""
    with ledger.connect() as connection:
        return {
            table.name: sorted(str(tuple(row)) for row in connection.execute(select(table)))
            for table in metadata.sorted_tables
            if table.name != "api_key"
        }


def keys_that_are_none(ledger: Engine) -> dict[str, str]:
    """Keys of the owner's project that let nobody in."""
    made = {
        name: database.run(ledger, lambda c: keys.create(c, name="test")) for name in ("revoked", "expired", "wrong")
    }
    database.run(ledger, lambda c: keys.revoke(c, made["revoked"].split("_")[1]))
    late = text("UPDATE api_key SET expires_at = now() - interval '1 s' WHERE id = :id")
    database.run(ledger, lambda c: c.execute(late, {"id": made["expired"].split("_")[1]}))
    made["wrong"] = f"{made['wrong'][:-3]}xyz"
    return made


@pytest.mark.parametrize("state", BatchState)
def test_nobody_else_gets_at_anything_of_a_project_whatever_its_state(
    app: FastAPI, ledger: Engine, stranger: TestClient, client: TestClient, state: BatchState
) -> None:
    """Each route that names an object, for each object, by each caller who may not: another project, a key that was
    revoked, has expired, has another secret or not the scope."""
    objects = objects_of(ledger, client, state)
    nobodies = keys_that_are_none(ledger)
    before, tried = everything(ledger), 0
    for method, path, name in routes(app):
        (scope,) = scopes_for(method, path.format("x"))
        scopes = set(Scope) - {scope}
        narrow = database.run(ledger, lambda c, scopes=scopes: keys.create(c, name="test", scopes=scopes))  # type: ignore[misc]
        for object_id in [found for kind, found in objects if kind == name]:
            tried += 1
            foreign, unknown = (ask(stranger, method, path, one) for one in (object_id, UNKNOWN[name]))
            assert (foreign.status_code, unknown.status_code) == (404, 404), (method, path, foreign.text)
            assert foreign.text.replace(object_id, "") == unknown.text.replace(UNKNOWN[name], ""), (method, path)
            for who, secret in {**nobodies, "narrow": narrow}.items():
                caller = TestClient(app, headers={"authorization": f"Bearer {secret}"})
                status = ask(caller, method, path, object_id).status_code
                assert status == (403 if who == "narrow" else 401), (method, path, who)
    assert tried >= 11
    assert everything(ledger) == before


def test_what_a_body_names_of_others_cannot_be_told_from_what_there_is_not(
    ledger: Engine, stranger: TestClient, client: TestClient
) -> None:
    objects = dict(objects_of(ledger, client, BatchState.VALIDATING))
    errors = []
    for file_id in (objects["file_id"], UNKNOWN["file_id"]):
        order = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = stranger.post("/v1/batches", json=order).json()["id"]
        batch_id = making.scalar(ledger, "SELECT id FROM batch WHERE public_id = :id", id=made)
        assert isinstance(batch_id, int)
        intake.ingest(ledger, batch_id, owner=making.worker(ledger), settings=making.SETTINGS)
        ended = stranger.get(f"/v1/batches/{made}").json()
        assert ended["status"] == "failed"
        errors.append(str(ended["errors"]).replace(file_id, ""))
    assert errors[0] == errors[1]
    part_id = str(making.scalar(ledger, "SELECT id FROM upload_part"))
    order = {"bytes": 1, "filename": "in.jsonl", "purpose": "batch", "mime_type": "application/jsonl"}
    own = stranger.post("/v1/uploads", json=order).json()["id"]
    refused = [
        stranger.post(f"/v1/uploads/{own}/complete", json={"part_ids": [part]}) for part in (part_id, "part_unknown")
    ]
    assert [answer.status_code for answer in refused] == [400, 400]
    assert refused[0].text.replace(part_id, "") == refused[1].text.replace("part_unknown", "")


def test_an_idempotency_key_is_each_projects_own(stranger: TestClient, client: TestClient) -> None:
    order = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    mine, theirs = (
        caller.post("/v1/batches", json=order, headers={"idempotency-key": "k"}) for caller in (client, stranger)
    )
    assert mine.json()["id"] != theirs.json()["id"]
    assert [batch["id"] for batch in stranger.get("/v1/batches").json()["data"]] == [theirs.json()["id"]]


def test_lists_show_nothing_of_others_and_do_not_start_behind_it(
    ledger: Engine, stranger: TestClient, client: TestClient
) -> None:
    file = making.upload(ledger, making.line("a"))
    batch = making.create(ledger, file.id)
    for path, foreign, name in (("/v1/batches", batch.public_id, "batch_id"), ("/v1/files", file.id, "file_id")):
        assert len(client.get(path).json()["data"]) == 1
        assert stranger.get(path).json()["data"] == []
        behind = stranger.get(path, params={"after": foreign})
        unknown = stranger.get(path, params={"after": UNKNOWN[name]})
        assert behind.status_code == unknown.status_code >= 400
        assert behind.text.replace(foreign, "") == unknown.text.replace(UNKNOWN[name], "")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer gm_0_0", "Basic eDp5", "Bearer \xff"])
def test_no_route_answers_without_a_key(app: FastAPI, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    with TestClient(app) as nobody:
        for route in app.routes:
            if isinstance(route, APIRoute) and route.path.startswith("/v1/"):
                for method in route.methods:
                    path = re.sub(r"{\w+(:\w+)?}", "x", route.path)
                    answer = nobody.request(method, path, headers=headers)
                    assert answer.status_code == 401, (method, path, answer.text)


def test_every_route_has_a_scope_and_a_key_without_it_is_refused(app: FastAPI, ledger: Engine) -> None:
    for route in app.routes:
        if not isinstance(route, APIRoute) or not route.path.startswith("/v1/"):
            continue
        for method in route.methods:
            path = re.sub(r"{\w+(:\w+)?}", "x", route.path)
            needed = scopes_for(method, path)
            assert len(needed) <= 1, f"say in scopes_for what {method} {path} needs"
            if needed:
                others = database.run(
                    ledger,
                    lambda c, needed=needed: keys.create(c, name="test", scopes=set(Scope) - needed),  # type: ignore[misc]
                )
                with TestClient(app, headers={"authorization": f"Bearer {others}"}) as caller:
                    answer = caller.request(method, path)
                assert answer.status_code == 403, (method, path, answer.text)
                if method != "HEAD":  # has no body
                    assert answer.json()["error"]["code"] == "missing_scope"


def test_a_route_that_nobody_thought_of_needs_every_scope() -> None:
    assert scopes_for("GET", "/v1/secrets") == set(Scope)


def caller(app: FastAPI, ledger: Engine, limits: Limits) -> TestClient:
    made = database.run(ledger, lambda c: keys.create(c, name="test", limits=limits))
    return TestClient(app, headers={"authorization": f"Bearer {made}"})


def test_too_many_requests_are_told_when_to_come_again(app: FastAPI, ledger: Engine) -> None:
    with caller(app, ledger, Limits(requests_per_minute=2)) as client:
        answers = [client.get("/v1/models") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 0 < int(answers[2].headers["retry-after"]) <= 30
    assert answers[2].json()["error"] == {
        "message": answers[2].json()["error"]["message"],
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }


def test_too_many_open_batches_are_refused_and_a_repeated_order_is_not(app: FastAPI, ledger: Engine) -> None:
    order = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with caller(app, ledger, Limits(open_batches=1)) as client:
        first = client.post("/v1/batches", json=order, headers={"idempotency-key": "k"})
        again = client.post("/v1/batches", json=order, headers={"idempotency-key": "k"})
        second = client.post("/v1/batches", json=order)
        assert (first.status_code, again.json()["id"], second.status_code) == (200, first.json()["id"], 429)
        assert int(second.headers["retry-after"]) == 60
        assert making.scalar(ledger, "SELECT count(*) FROM batch") == 1
        database.run(ledger, lambda c: c.execute(text("UPDATE batch SET state = 'failed'")))
        assert client.post("/v1/batches", json=order).status_code == 200


def test_an_upload_holds_a_permit_and_gives_it_back_even_when_refused(app: FastAPI, ledger: Engine) -> None:
    with caller(app, ledger, Limits(uploads_at_once=1)) as client:
        for name in ("a.jsonl", "a.txt", "b.jsonl"):
            client.post("/v1/files", files={"file": (name, b"{}")}, data={"purpose": "batch"})
        assert making.scalar(ledger, "SELECT count(*) FROM upload_permit") == 0
        database.run(
            ledger,
            lambda c: c.execute(
                text("INSERT INTO upload_permit SELECT gen_random_uuid(), id, now() + interval '1 m' FROM api_key")
            ),
        )
        busy = client.post("/v1/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": "batch"})
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
    assert making.scalar(ledger, "SELECT count(*) FROM file") == 2


def test_an_upload_that_would_fill_the_project_is_refused(ledger: Engine, key: str, hints: Hints) -> None:
    app = create_app(ledger, hints, Settings(stored_bytes=1_000))
    with TestClient(app, headers={"authorization": f"Bearer {key}"}) as client:
        small = client.post("/v1/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": "batch"})
        large = client.post("/v1/files", files={"file": ("a.jsonl", b"x" * 999)}, data={"purpose": "batch"})
    assert (small.status_code, large.status_code) == (200, 429)
    assert large.json()["error"]["code"] == "insufficient_quota"
    assert int(large.headers["retry-after"]) > 120, "the SDK does not try again by itself"
