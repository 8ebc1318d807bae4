"""What every answer keeps to: the envelope, the request id, and each caller's own objects only."""

import httpx
import psycopg
import pytest
import sqlalchemy.exc
from fastapi.testclient import TestClient

from jobs import database
from jobs.api import batches as batches_route
from jobs.api.app import ROUTES, create_app
from jobs.settings import Settings

ORDER = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}


def refusal(answer: httpx.Response, status: int) -> dict[str, object]:
    """The error of an answer, whose form is checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.fixture
def file_id(client) -> str:
    form = {"purpose": (None, "batch"), "file": ("größe; 1.jsonl", b"{}\n")}
    return client.post("/v1/files", files=form).json()["id"]


@pytest.fixture
def failing(app, key, monkeypatch):
    """A client of an app whose reads of a batch fail with the error that the test appends."""
    errors = []

    def get(*_):
        raise errors[0]

    monkeypatch.setattr(batches_route.batches, "get", get)
    with TestClient(app, headers={"authorization": f"Bearer {key}"}, raise_server_exceptions=False) as client:
        yield client, errors


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/colours", 404),
        ("GET", "/v1/files/", 404),
        ("PUT", "/v1/files", 405),
        ("GET", "/v1/files/file-x", 404),
        ("DELETE", "/v1/files/file-x", 404),
        ("GET", "/v1/files/file-x/content", 404),
        ("GET", "/v1/files?after=file-x", 404),
        ("GET", "/v1/files/%00", 400),
        ("GET", "/v1/files?purpose=%00", 400),
        ("GET", "/v1/batches/batch_x", 404),
        ("POST", "/v1/batches/batch_x/cancel", 404),
        ("GET", "/v1/batches?after=batch_x", 404),
        ("GET", "/v1/models/org/name", 404),
    ],
)
def test_every_refusal_wears_the_envelope_and_a_request_id(client, method, path, status):
    refusal(client.request(method, path), status)


def test_a_wrong_method_is_told_all_the_right_ones(client):
    answer = client.put("/v1/files")
    assert refusal(answer, 405)["message"] == "Not allowed to PUT /v1/files. Allowed methods: GET, HEAD, POST."
    assert answer.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/embeddings", "Invalid URL (GET /v1/embeddings)"),
        ("/chat/completions", "Invalid URL (GET /chat/completions). Check the base URL: it ends in /v1, once."),
        ("/v1/v1/models", "Invalid URL (GET /v1/v1/models). Check the base URL: it ends in /v1, once."),
        ("/v1", "Invalid URL (GET /v1). Check the base URL: it ends in /v1, once."),
    ],
)
def test_who_has_the_wrong_base_url_is_told_so(client, path, message):
    assert refusal(client.get(path), 404)["message"] == message


@pytest.mark.parametrize(
    ("query", "code", "message"),
    [
        (
            "batches?limit=101",
            "integer_above_max_value",
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
        ),
        (
            "batches?limit=-1",
            "integer_below_min_value",
            "Invalid 'limit': integer below minimum value. Expected a value >= 0, but got -1 instead.",
        ),
        (
            "batches?limit=abc",
            "invalid_type",
            "Invalid type for 'limit': expected an integer, but got a string instead.",
        ),
        (
            "batches?limit=1.0",
            "invalid_type",
            "Invalid type for 'limit': expected an integer, but got a string instead.",
        ),
        (
            "files?limit=0",
            "integer_below_min_value",
            "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        ),
        ("files?order=up", "invalid_value", "Invalid value: 'up'. Supported values are: 'asc' and 'desc'."),
    ],
)
def test_a_bad_query_is_refused_in_openais_words(client, query, code, message):
    error = refusal(client.get(f"/v1/{query}"), 400)
    assert (error["code"], error["message"]) == (code, message)
    assert error["param"] == query.partition("?")[2].partition("=")[0]


def test_a_limit_of_zero_is_an_empty_page_of_batches(client):
    client.post("/v1/batches", json=ORDER)
    assert client.get("/v1/batches?limit=0").json()["data"] == []


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"a": NaN}', "application/json", 400),
        (b"{}", "text/plain", 415),
        (b" " * (8 * 1024 * 1024 + 1), "application/json", 413),
    ],
)
@pytest.mark.parametrize("path", ["/v1/batches", "/v1/chat/completions"])
def test_a_body_that_is_no_json_object_is_refused(client, path, content, kind, status):
    refusal(client.post(path, content=content, headers={"content-type": kind}), status)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"input_file_id": None}, "invalid_type", "input_file_id"),
        ({"input_file_id": "a\0"}, "invalid_value", "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "invalid_value", "endpoint"),
        ({"completion_window": "soon"}, "invalid_value", "completion_window"),
        ({"metadata": {"tags": []}}, "invalid_type", "metadata.tags"),
        ({"colour": "red"}, "unknown_parameter", "colour"),
    ],
)
def test_a_bad_order_is_refused_with_code_and_param(client, hints, change, code, param):
    error = refusal(client.post("/v1/batches", json={**ORDER, **change}), 400)
    assert (error["code"], error["param"]) == (code, param)
    assert hints.sent == []


@pytest.mark.parametrize(("method", "path"), [route[:2] for route in ROUTES if route[1] != "/healthz"])
def test_no_route_answers_without_a_key(client, method, path):
    headers = {"authorization": "Basic abc"}
    error = refusal(client.request(method, path, headers=headers), 401)
    assert error["type"] == "authentication_error"


def test_objects_of_another_project_do_not_exist(client, stranger, file_id):
    batch_id = client.post("/v1/batches", json=ORDER).json()["id"]
    for path in (f"files/{file_id}", f"files/{file_id}/content", f"batches/{batch_id}", f"files?after={file_id}"):
        refusal(stranger.get(f"/v1/{path}"), 404)
    refusal(stranger.delete(f"/v1/files/{file_id}"), 404)
    refusal(stranger.post(f"/v1/batches/{batch_id}/cancel"), 404)
    assert stranger.get("/v1/files").json()["data"] == stranger.get("/v1/batches").json()["data"] == []
    assert client.get(f"/v1/files/{file_id}").status_code == 200


def test_content_tells_its_length_and_its_name(client, file_id):
    answer = client.get(f"/v1/files/{file_id}/content")
    assert answer.headers["content-length"] == "3"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''gr%C3%B6%C3%9Fe%3B%201.jsonl"


def test_the_same_idempotency_key_makes_one_batch(client):
    once = {"idempotency-key": "one"}
    made = [client.post("/v1/batches", json=ORDER, headers=once).json()["id"] for _ in range(2)]
    assert made[0] == made[1]
    other = client.post("/v1/batches", json={**ORDER, "completion_window": "1h"}, headers=once)
    refusal(other, 409)
    assert other.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("chosen", ["", "x" * 257, "a\tb"])
def test_an_unfit_idempotency_key_is_refused(client, chosen):
    refusal(client.post("/v1/batches", json=ORDER, headers={"idempotency-key": chosen}), 400)


def test_a_batch_shows_every_key_of_the_contract(client):
    batch = client.post("/v1/batches", json=ORDER).json()
    assert batch["errors"] is batch["output_file_id"] is batch["in_progress_at"] is batch["model"] is None
    assert batch["usage"] == {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }


def test_an_unexpected_error_is_told_without_its_text(failing):
    client, errors = failing
    errors.append(RuntimeError("the secret"))
    answer = client.get("/v1/batches/batch_x")
    assert refusal(answer, 500)["type"] == "server_error"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "error",
    [
        sqlalchemy.exc.OperationalError("SELECT", {}, psycopg.errors.QueryCanceled("late")),
        sqlalchemy.exc.OperationalError("SELECT", {}, psycopg.errors.DiskFull("full")),
        sqlalchemy.exc.TimeoutError("no connection is free"),
    ],
)
def test_a_database_that_cannot_answer_is_worth_a_retry(failing, error):
    client, errors = failing
    errors.append(error)
    answer = client.get("/v1/batches/batch_x")
    refusal(answer, 503)
    assert float(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("path", ["/v1/files?purpose=batch&purpose=vision", "/v1/batches?limit=1&limit=2"])
def test_a_parameter_that_is_given_twice_is_refused(client, path):
    error = refusal(client.get(path), 400)
    assert (error["code"], error["param"]) == ("invalid_value", path.partition("?")[2].partition("=")[0])


def test_health_needs_no_key_and_a_database(app, client, hints):
    assert client.get("/healthz", headers={"authorization": ""}).json() == {"status": "ok"}
    nowhere = database.connect("postgresql://nobody@/nothing?host=/nowhere")
    with TestClient(create_app(nowhere, hints, Settings())) as client:
        refusal(client.get("/healthz"), 503)


def test_the_description_of_the_api_is_served(client):
    assert set(client.get("/openapi.json").json()["paths"]) == {path.replace(":path", "") for _, path, _ in ROUTES}
