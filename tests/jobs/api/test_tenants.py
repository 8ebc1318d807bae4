"""Whose objects a key opens: every route with an id in it, against objects of another project in every state."""

import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from jobs import database, keys
from jobs.api.app import create_app
from jobs.api.auth import scopes_for
from jobs.hints import Hints
from jobs.keys import Limits, Scope
from jobs.settings import Settings
from jobs.states import BatchState
from tests.jobs import making

UNKNOWN = {"batch_id": "batch_" + "0" * 32, "file_id": "file-" + "0" * 22}
SHARED = {"model_id"}  # what belongs to no project
ELSEWHERE = {"upload_id", "part_id"}  # proved where uploads in parts are


def routes(app: FastAPI) -> Iterator[tuple[str, str, str]]:
    """Method, path and parameter of every route that names an object of a project."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            for name in set(route.param_convertors) - SHARED - ELSEWHERE:
                assert name in UNKNOWN, f"say here whose {name} is"
                for method in route.methods:
                    yield method, re.sub(r"{" + name + r"(:\w+)?}", "{}", route.path), name


@pytest.mark.parametrize("state", BatchState)
def test_a_foreign_id_cannot_be_told_from_an_unknown_one(
    app: FastAPI, ledger: Engine, stranger: TestClient, client: TestClient, state: BatchState
) -> None:
    file = making.upload(ledger, making.line("a"))
    batch = making.create(ledger, file.id)
    database.run(ledger, lambda c: c.execute(text("UPDATE batch SET state = :state"), {"state": state.value}))
    own = {"batch_id": batch.public_id, "file_id": file.id}
    before = [client.get(f"/v1/batches/{batch.public_id}").json(), client.get(f"/v1/files/{file.id}").json()]
    tried = 0
    for method, path, name in routes(app):
        foreign = stranger.request(method, path.format(own[name]))
        unknown = stranger.request(method, path.format(UNKNOWN[name]))
        assert (foreign.status_code, unknown.status_code) == (404, 404), (method, path, foreign.text)
        assert foreign.text.replace(own[name], "") == unknown.text.replace(UNKNOWN[name], ""), (method, path)
        tried += 1
    assert tried >= 5
    after = [client.get(f"/v1/batches/{batch.public_id}").json(), client.get(f"/v1/files/{file.id}").json()]
    assert after == before


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
