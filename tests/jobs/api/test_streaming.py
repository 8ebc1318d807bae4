"""Streamed chat completions: pieces as they come, the rest from the ledger, and nothing left behind."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select

from gristmill.embedded import Addresses
from jobs import database
from jobs.api import chat
from jobs.api.app import create_app
from jobs.settings import Settings
from jobs.streams import Publisher
from jobs.tables import batch
from tests.jobs.api.conftest import RecordedHints
from tests.jobs.api.test_chat import ASKED, Worker, left, wait_for

STREAMED = {**ASKED, "stream": True}
FAILURE = {"error": {"message": "No.", "type": "invalid_request_error", "param": "messages", "code": "bad"}}


def answer(*texts: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny", "system_fingerprint": "fp_1",
        "choices": [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
            for index, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }  # fmt: skip


def events(lines: Iterator[str]) -> Iterator[Any]:
    """The data of server-sent events; a comment as it stands."""
    for line in lines:
        if line.startswith(":"):
            yield line
        elif line:
            found = line.removeprefix("data: ")
            assert found != line
            yield found if found == "[DONE]" else orjson.loads(found)


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for chunk in chunks
        if isinstance(chunk, dict)
        for choice in chunk["choices"]
        if choice["index"] == index
    )


@pytest.fixture
def app(ledger: Engine, hints: RecordedHints, servers: Addresses) -> FastAPI:
    return create_app(ledger, hints, Settings(broker_url=servers.broker_url))


@pytest.fixture
def publisher(servers: Addresses) -> Iterator[Publisher]:
    publisher = Publisher(servers.broker_url)
    yield publisher
    publisher.close()


@pytest.fixture
def live(address: str, key: str) -> Iterator[httpx.Client]:
    """A client of a real server, who can leave."""
    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {key}"}, timeout=20) as client:
        yield client


def ask(client: TestClient, ledger: Engine, body: dict[str, Any], stored: dict[str, Any], status: int = 200) -> Any:
    """The answer to a streamed question, of which no piece is published."""
    worker = Worker(ledger, status, stored)
    worker.start()
    answered = client.post("/v1/chat/completions", json=body)
    worker.join()
    return answered


def request_id(ledger: Engine) -> str:
    """What the question in the queue is published under."""
    find: Callable[..., Any] = lambda c: c.execute(select(batch.c.public_id)).scalar_one_or_none()  # noqa: E731
    wait_for(lambda: database.run(ledger, find))
    found: str = database.run(ledger, find)
    return found


@contextmanager
def begun(live: httpx.Client, ledger: Engine, publisher: Publisher) -> Iterator[tuple[Iterator[Any], str]]:
    """The events of a stream whose first piece is `Hel`, and what it is published under."""
    first = threading.Thread(target=lambda: publisher.publish(request_id(ledger), 0, "Hel", start=0))
    first.start()
    with live.stream("POST", "/v1/chat/completions", json=STREAMED) as answered:
        first.join()
        stream = events(answered.iter_lines())
        assert text_of([next(stream), next(stream)]) == "Hel"
        yield stream, request_id(ledger)


def test_without_a_single_piece_the_stream_is_whole(client, ledger):
    answered = ask(client, ledger, {**STREAMED, "n": 2}, answer("Hello", "Adieu"))
    assert answered.headers["content-type"].startswith("text/event-stream")
    assert answered.headers["cache-control"] == "no-cache"
    *chunks, done = events(iter(answered.text.splitlines()))
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {"content": "Adieu"},
        {},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"] * 2
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "usage" not in chunks[0]
    assert chunks[-1]["system_fingerprint"] == "fp_1"
    assert left(ledger) == 0


def test_the_end_of_a_filtered_choice_names_its_categories(client, ledger):
    withheld = answer("Hello", "")
    found = {"violence": {"filtered": True, "detected": True}}
    withheld["choices"][1] |= {"finish_reason": "content_filter", "content_filter_results": found}
    *_, first, second, _ = events(iter(ask(client, ledger, {**STREAMED, "n": 2}, withheld).text.splitlines()))
    assert "content_filter_results" not in first["choices"][0]
    assert second["choices"][0]["finish_reason"] == "content_filter"
    assert second["choices"][0]["content_filter_results"] == found


def test_the_usage_comes_last_and_only_where_it_was_asked_for(client, ledger):
    body = {**STREAMED, "stream_options": {"include_usage": True}}
    *chunks, last, _ = events(iter(ask(client, ledger, body, answer("Hello")).text.splitlines()))
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 5)
    assert {chunk["usage"] for chunk in chunks} == {None}


def test_pieces_are_sent_before_there_is_an_answer(live, ledger, publisher):
    with begun(live, ledger, publisher) as (stream, published):
        publisher.publish(published, 7, "of no choice", start=0)
        publisher.publish(published, 0, "lo, w", start=3)
        assert text_of([next(stream)]) == "lo, w"
        worker = Worker(ledger, 200, answer("Hello, world"))
        worker.start()
        rest = list(stream)
        worker.join()
    assert (text_of(rest), rest[-1]) == ("orld", "[DONE]")
    wait_for(lambda: left(ledger) == 0)


def test_a_refusal_before_the_first_piece_is_a_plain_refusal(client, ledger):
    answered = ask(client, ledger, STREAMED, FAILURE, status=400)
    assert (answered.status_code, answered.json()) == (400, FAILURE)
    assert left(ledger) == 0


def test_a_refusal_after_the_first_piece_is_told_in_the_stream(live, ledger, publisher):
    with begun(live, ledger, publisher) as (stream, _):
        worker = Worker(ledger, 400, FAILURE)
        worker.start()
        (last,) = stream
        worker.join()
    assert (last["error"]["message"], last["error"]["code"]) == ("No.", "bad")


def test_a_client_who_leaves_a_stream_takes_the_question_along(live, ledger, publisher):
    with begun(live, ledger, publisher):
        assert left(ledger) > 0
    wait_for(lambda: left(ledger) == 0)


def test_a_client_who_leaves_before_the_first_piece_takes_the_question_along(live, ledger):
    with pytest.raises(httpx.ReadTimeout):
        live.post("/v1/chat/completions", json=STREAMED, timeout=0.3)
    wait_for(lambda: left(ledger) == 0)


def test_a_silent_stream_is_kept_alive(live, ledger, monkeypatch):
    monkeypatch.setattr(chat, "KEEP_ALIVE_SECONDS", 0.05)
    with live.stream("POST", "/v1/chat/completions", json=STREAMED) as answered:
        stream = events(answered.iter_lines())
        assert next(stream)["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [next(stream) for _ in range(3)] == [": keep-alive"] * 3
        worker = Worker(ledger, 200, answer("Hello"))
        worker.start()
        assert text_of(list(stream)) == "Hello"
        worker.join()


def test_a_stream_that_nobody_answers_ends_in_an_error(client, ledger, monkeypatch):
    monkeypatch.setattr(chat, "WAIT_SECONDS_MAX", 0.2)
    assert client.post("/v1/chat/completions", json=STREAMED).status_code == 503
    monkeypatch.setattr(chat, "KEEP_ALIVE_SECONDS", 0.05)
    *_, last = events(iter(client.post("/v1/chat/completions", json=STREAMED).text.splitlines()))
    assert last["error"]["type"] == "server_error"
    assert left(ledger) == 0


def test_without_a_broker_the_stream_is_whole(ledger, hints, key):
    nowhere = Settings(broker_url="redis+socket:///nowhere/valkey.sock?virtual_host=0")
    with TestClient(create_app(ledger, hints, nowhere), headers={"authorization": f"Bearer {key}"}) as client:
        answered = ask(client, ledger, STREAMED, answer("Hello"))
    assert text_of(list(events(iter(answered.text.splitlines())))) == "Hello"


def test_many_readers_each_hear_their_own(live, ledger, publisher, address, key):
    said = [f"text {number}" for number in range(6)]
    found: dict[int, str] = {}

    def read(number: int) -> None:
        body = {**STREAMED, "messages": [{"role": "user", "content": str(number)}]}
        with live.stream("POST", "/v1/chat/completions", json=body) as answered:
            found[number] = text_of(list(events(answered.iter_lines())))

    readers = [threading.Thread(target=read, args=[number]) for number in range(6)]
    for reader in readers:
        reader.start()
    for _ in readers:
        worker = EchoingWorker(ledger, publisher)
        worker.start()
        worker.join()
    for reader in readers:
        reader.join()
    assert [found[number] for number in range(6)] == said


class EchoingWorker(Worker):
    """Answers `text N` to the question N, and publishes it first."""

    def __init__(self, engine: Engine, publisher: Publisher) -> None:
        super().__init__(engine, 200, {})
        self.publisher = publisher

    def answer(self, connection) -> bool:
        from jobs.tables import request, result

        query = select(request.c.batch_id, request.c.line, batch.c.public_id).join(
            batch, batch.c.id == request.c.batch_id
        )
        row = connection.execute(query.where(request.c.batch_id.not_in(select(result.c.batch_id))).limit(1)).first()
        if row is None:
            return False
        text = "text " + orjson.loads(row.line)["body"]["messages"][0]["content"]
        self.publisher.publish(row.public_id, 0, text, start=0)
        self.body = answer(text)
        self.store(connection, row.batch_id)
        return True
