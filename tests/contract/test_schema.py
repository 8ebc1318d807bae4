"""The API's own description, held against the API by requests that schemathesis makes up."""

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Engine

from jobs import database, keys
from jobs.api import chat
from jobs.api.app import ROUTES, create_app
from jobs.settings import Settings
from tests.jobs.api.conftest import RecordedHints

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
EXAMPLES = 20
EXAMPLES_OF_CHAT = 60  # of whose many parameters each request has a few wrong ones
ASKED = [
    (method, path, mode)
    for method, path, _ in ROUTES
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or path != "/healthz"  # of which nothing can be asked wrongly
]
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]


@pytest.fixture
def app(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setattr(chat, "WAIT_SECONDS_MAX", 0.01)  # nobody answers here
    return create_app(ledger, RecordedHints(), Settings(requests_per_minute=1_000_000, open_batches=1_000_000))


@pytest.fixture
def key(ledger: Engine) -> str:
    return database.run(ledger, lambda c: keys.create(c, name="schema"))


@pytest.mark.parametrize(("method", "path", "mode"), ASKED)
def test_no_request_meets_anything_but_what_is_described(
    app: FastAPI, key: str, method: str, path: str, mode: GenerationMode
) -> None:
    described = schemathesis.openapi.from_asgi("/openapi.json", app)
    examples = EXAMPLES_OF_CHAT if "chat" in path else EXAMPLES
    operation = described[path.replace(":path", "")][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
    def answers_as_described(case: schemathesis.Case) -> None:
        answer = case.call(headers={"authorization": f"Bearer {key}"})
        if answer.status_code == 503 and path == "/v1/chat/completions":
            return  # no worker is there
        case.validate_response(answer, checks=CHECKS)

    answers_as_described()
