"""Single chat completions: queued, answered as stored, and forgotten."""

import threading
import time
from functools import partial

import openai
import orjson
import pytest
from sqlalchemy import Engine, func, select

from jobs import database, direct
from jobs.api import chat
from jobs.keys import DEFAULT_PROJECT
from jobs.tables import batch, chunk, request, result

MESSAGES = [{"role": "user", "content": "Hello"}]
ASKED = {"model": "tiny", "messages": MESSAGES}


def left(engine: Engine) -> int:
    """Rows that the ledger holds."""
    counts = [select(func.count()).select_from(table) for table in (batch, request, chunk, result)]
    return database.run(engine, lambda c: sum(c.execute(count).scalar_one() for count in counts))


def wait_for(is_so, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "nothing came of it"
        threading.Event().wait(0.01)


class Worker(threading.Thread):
    """Answers the first line that it finds."""

    def __init__(self, engine: Engine, status: int, body: dict[str, object]) -> None:
        super().__init__()
        self.engine, self.status, self.body = engine, status, body
        self.line: dict[str, object] = {}

    def run(self) -> None:
        wait_for(lambda: database.run(self.engine, self.answer))

    def answer(self, connection) -> bool:
        row = connection.execute(select(request.c.batch_id, request.c.line)).one_or_none()
        if row is None:
            return False
        self.line = orjson.loads(row.line)
        self.store(connection, row.batch_id)
        return True

    def store(self, connection, batch_id: int) -> None:
        tokens = dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"), 1)
        connection.execute(
            result.insert().values(
                batch_id=batch_id,
                line_no=1,
                ok=self.status < 400,
                status=self.status,
                epoch=1,
                body=orjson.dumps(self.body).decode(),
                **tokens,
            )
        )


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_arrives_as_stored_and_is_forgotten(client, ledger, hints, status):
    worker = Worker(ledger, status, {"id": "chatcmpl-1"})
    worker.start()
    answer = client.post("/v1/chat/completions", json=ASKED)
    worker.join()
    assert (answer.status_code, answer.json()) == (status, {"id": "chatcmpl-1"})
    assert worker.line["body"] == ASKED
    assert hints.sent == [("pump", "tiny")]
    assert left(ledger) == 0


def test_a_client_that_leaves_takes_its_question_along(sdk, ledger):
    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=0.3).chat.completions.create(**ASKED)
    wait_for(lambda: left(ledger) == 0)


def test_a_question_that_nobody_answers_ends_in_a_refusal(client, ledger, monkeypatch):
    monkeypatch.setattr(chat, "WAIT_SECONDS_MAX", 0.1)
    answer = client.post("/v1/chat/completions", json=ASKED)
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert left(ledger) == 0


def test_a_question_whose_commit_was_lost_is_asked_once(ledger):
    submit = partial(direct.submit, project_id=DEFAULT_PROJECT, body=ASKED, model="tiny", public_id=direct.new_id())
    first, again = (database.run(ledger, submit) for _ in range(2))
    assert first == again
    assert left(ledger) == 3  # a batch, its request and its chunk


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "unknown"}, 404, "model_not_found", "model"),
        ({"model": "a\0"}, 404, "model_not_found", "model"),
        ({"verbosity": "low"}, 400, "unsupported_parameter", "verbosity"),
        ({"messages": []}, 400, "empty_array", "messages"),
        ({"n": "1"}, 400, "invalid_type", "n"),
        ({"colour": "red"}, 400, "unknown_parameter", "colour"),
    ],
)
def test_a_bad_question_is_refused_at_once(client, ledger, hints, change, status, code, param):
    answer = client.post("/v1/chat/completions", json={**ASKED, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert (hints.sent, left(ledger)) == ([], 0)


def test_a_body_too_deep_to_be_kept_is_refused_and_nothing_stays(client, ledger):
    deep: object = 1
    for _ in range(600):
        deep = [deep]
    answer = client.post("/v1/chat/completions", json={**ASKED, "chat_template_kwargs": {"thinking": deep}})
    assert answer.status_code == 400
    assert "not parseable as valid JSON" in answer.json()["error"]["message"]
    assert left(ledger) == 0
