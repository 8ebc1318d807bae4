"""What OpenAI says of each fault around a batch, word for word, over HTTP: clients and people compare it."""

from collections.abc import Callable
from uuid import UUID

import orjson
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from jobs import database, intake, models
from jobs.contract.batch import ENDPOINT
from tests.jobs import making

ORDER = {"input_file_id": "file-x", "endpoint": ENDPOINT, "completion_window": "24h"}


def refusal(status: int, message: str, code: str | None, param: str | None) -> tuple[int, dict[str, object]]:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return status, {"error": error}


@pytest.mark.parametrize(
    ("change", "message", "code", "param"),
    [
        (
            {"endpoint": "/v1/invalid"},
            f"Invalid endpoint: /v1/invalid. Supported values: {ENDPOINT}.",
            "invalid_value",
            "endpoint",
        ),
        (
            {"metadata": {"tags": ["a"]}},
            "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
            "invalid_type",
            "metadata.tags",
        ),
        *(
            ({name: ...}, f"Missing required parameter: '{name}'.", "missing_required_parameter", name)
            for name in ORDER
        ),
        ({"input_file": "file-x"}, "Unknown parameter: 'input_file'.", "unknown_parameter", "input_file"),
    ],
)
def test_an_order_that_is_no_order(
    client: TestClient, change: dict[str, object], message: str, code: str, param: str
) -> None:
    body = {name: value for name, value in {**ORDER, **change}.items() if value is not ...}
    answer = client.post("/v1/batches", json=body)
    found = answer.json()["error"]
    assert (answer.status_code, found["code"], found["param"], found["type"]) == (
        400,
        code,
        param,
        "invalid_request_error",
    )
    assert found["message"].startswith(message.removesuffix("."))


@pytest.mark.parametrize("window", ["", "1 day", "24", "0h", "-1h", "h"])
def test_a_window_that_does_not_parse(client: TestClient, window: str) -> None:
    answer = client.post("/v1/batches", json={**ORDER, "completion_window": window})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "completion_window")
    assert "completion_window" in error["message"]


def test_what_does_not_exist(client: TestClient) -> None:
    for call in (client.get, lambda path: client.post(f"{path}/cancel")):
        answer = call("/v1/batches/batch_x")
        assert (answer.status_code, answer.json()) == refusal(404, "No batch found with id 'batch_x'.", None, None)
    for call in (client.get, client.delete, lambda path: client.get(f"{path}/content")):
        answer = call("/v1/files/file-x")
        assert (answer.status_code, answer.json()) == refusal(404, "No such File object: file-x", None, "id")
    answer = client.get("/v1/models/some/model")
    assert (answer.status_code, answer.json()) == refusal(
        404, "The model 'some/model' does not exist", "model_not_found", "model"
    )


@pytest.mark.parametrize("state", ["completed", "failed", "expired"])
def test_a_batch_that_has_ended_is_not_cancelled(client: TestClient, ledger: Engine, state: str) -> None:
    batch = making.create(ledger, "file-x")
    database.run(ledger, lambda c: c.execute(text("UPDATE batch SET state = :state"), {"state": state}))
    answer = client.post(f"/v1/batches/{batch.public_id}/cancel")
    assert (answer.status_code, answer.json()) == refusal(
        409, f"Cannot cancel a batch with status '{state}'.", None, None
    )
    assert answer.headers["x-should-retry"] == "false"


def without(name: str) -> bytes:
    whole = orjson.loads(making.line("a"))
    del whole[name]
    return orjson.dumps(whole)


def without_in_body(name: str) -> bytes:
    whole = orjson.loads(making.line("a"))
    del whole["body"][name]
    return orjson.dumps(whole)


def changed(**change: object) -> bytes:
    return orjson.dumps({**orjson.loads(making.line("a")), **change})


LINE_FAULTS: list[tuple[Callable[[], bytes], str, str, str | None]] = [
    (lambda: b"{", "invalid_json_line", "This line is not parseable as valid JSON.", None),
    *(
        (
            lambda encoding=encoding: making.line("a", content="h\u00e9llo").decode().encode(encoding),  # type: ignore[misc]
            "invalid_json_line",
            "This line is not parseable as valid JSON. It is not in UTF-8, as the file must be.",
            None,
        )
        for encoding in ("latin-1", "utf-16")
    ),
    (
        lambda: b"[1]",
        "invalid_json_line",
        "Expected one request, a JSON object, in this line, but it is an array.",
        None,
    ),
    *(
        (lambda name=name: without(name), "missing_required_parameter", f"Missing required parameter: '{name}'.", name)  # type: ignore[misc]
        for name in ("custom_id", "method", "url", "body")
    ),
    *(
        (
            lambda name=name: without_in_body(name),  # type: ignore[misc]
            "missing_required_parameter",
            f"Missing required parameter: '{name}'.",
            f"body.{name}",
        )
        for name in ("model", "messages")
    ),
    (
        lambda: making.line("a", stream=True),
        "streaming_unsupported",
        "Chat Completions: Streaming is not supported in the Batch API.",
        "body.stream",
    ),
    (
        lambda: changed(url="/v1/embeddings"),
        "invalid_url",
        "The URL provided for this request does not match the batch endpoint.",
        "url",
    ),
    (lambda: changed(method="GET"), "invalid_method", "Invalid method 'GET'. Only POST is supported.", "method"),
    (
        lambda: making.line("a", model="other"),
        "model_not_found",
        "The provided model 'other' is not supported by the Batch API.",
        "body.model",
    ),
    (
        lambda: making.line("a", model="second"),
        "mismatched_model",
        (
            "The model 'second' for this request does not match the rest of the batch. Each batch must contain "
            "requests for a single model."
        ),
        "body.model",
    ),
    (
        lambda: making.line("first"),
        "duplicate_custom_id",
        (
            "The custom_id 'first' for this request is a duplicate of another request. The custom_id parameter must be "
            "unique for each request in a batch."
        ),
        "custom_id",
    ),
]


@pytest.mark.parametrize(("second", "code", "message", "param"), LINE_FAULTS)
def test_a_faulty_line(
    client: TestClient, ledger: Engine, second: Callable[[], bytes], code: str, message: str, param: str | None
) -> None:
    database.run(ledger, lambda c: models.register(c, ["second"]))
    batch = making.ingest(ledger, [making.line("first"), second()])
    answer = client.get(f"/v1/batches/{batch.public_id}").json()
    assert answer["status"] == "failed"
    assert answer["errors"] == {
        "object": "list",
        "data": [{"code": code, "message": message, "param": param, "line": 2}],
    }
    assert answer["request_counts"] == {"total": 0, "completed": 0, "failed": 0}


@pytest.mark.parametrize(
    ("content", "code", "message", "param"),
    [
        (
            b"\n",
            "empty_file",
            "The input file is empty. Please ensure that the batch contains at least one request.",
            None,
        ),
        (None, "invalid_request", "Cannot find file X, or organization default does not have access to it.", "file_id"),
    ],
)
def test_a_file_that_is_not_there_or_says_nothing(
    client: TestClient,
    ledger: Engine,
    content: bytes | None,
    code: str,
    message: str,
    param: str | None,
) -> None:
    file_id = "file-unknown" if content is None else making.upload(ledger, content).id
    batch = making.create(ledger, file_id)
    owner: UUID = making.worker(ledger)
    intake.ingest(ledger, batch.id, owner=owner, settings=making.SETTINGS)
    (error,) = client.get(f"/v1/batches/{batch.public_id}").json()["errors"]["data"]
    assert error == {"code": code, "message": message.replace("X", file_id), "param": param, "line": None}
