"""Who streams a direct completion reads it while it is written, over the real broker, from a real engine."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import orjson
import pytest
from sqlalchemy import Connection
from sqlalchemy import Engine as Ledger

from gristmill.embedded import Addresses
from jobs import database, direct, results, streams
from jobs.leases import Lease
from jobs.results import Result
from jobs.states import ChunkState
from jobs.streams import Piece, Publisher
from tests import tiny_model
from tests.jobs import making
from tests.worker.pumping import pump_of
from worker import engine
from worker.pump import Pump

PATIENCE_SECONDS = 20
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "temperature": 0}


@pytest.fixture
def pump(ledger: Ledger, servers: Addresses, tmp_path: Path) -> Iterator[Pump]:
    folder, publisher = tiny_model.write(tmp_path / "tiny"), Publisher(servers.broker_url)
    with engine.load(folder, engine.EngineSettings(threads=1, slots_max=2)) as inference:
        yield pump_of(ledger, inference, folder, publisher=publisher)
    publisher.close()


@pytest.fixture
def owner(ledger: Ledger) -> UUID:
    return making.worker(ledger)


async def read_along(
    ledger: Ledger, broker_url: str, run: Callable[[], None], on_piece: Callable[[], None], **more: object
) -> tuple[list[Piece], str]:
    """The pieces that were heard of a completion, and its stored answer's text."""
    public_id, heard = direct.new_id(), []
    async with streams.subscribe(broker_url, public_id) as subscription:
        queued = database.run(
            ledger, lambda c: direct.submit(c, "default", {**ASKED, **more}, model="tiny", public_id=public_id)
        )
        running = asyncio.create_task(asyncio.to_thread(run))
        while not running.done():
            if (piece := await subscription.next(0.1)) is not None:
                heard.append(piece)
                on_piece()
        await running
        while (piece := await subscription.next(0.1)) is not None:
            heard.append(piece)
    answer = database.run(ledger, lambda c: direct.answer(c, queued.id))
    assert answer is not None
    return heard, orjson.loads(answer[1])["choices"][0]["message"]["content"]


def test_pieces_arrive_before_the_answer_is_stored_and_are_its_text(
    ledger: Ledger, servers: Addresses, pump: Pump, owner: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_heard, flush = threading.Event(), results.flush

    def flush_after_a_piece(connection: Connection, lease: Lease, answered: list[Result]) -> ChunkState | None:
        assert is_heard.wait(PATIENCE_SECONDS), "no piece came before the answer was stored"
        return flush(connection, lease, answered)

    monkeypatch.setattr("worker.answering.results.flush", flush_after_a_piece)
    pieces, text = asyncio.run(
        read_along(ledger, servers.broker_url, lambda: pump.run(lambda: owner), is_heard.set, stream=True)
    )
    assert len(pieces) > 1
    published = "".join(piece.text for piece in pieces)
    assert published in (text, text.removesuffix("\N{REPLACEMENT CHARACTER}")), "all but a sign that was cut"


def test_what_is_not_streamed_is_not_published(ledger: Ledger, servers: Addresses, pump: Pump, owner: UUID) -> None:
    for more in ({}, {"stream": False}):
        pieces, _ = asyncio.run(
            read_along(ledger, servers.broker_url, lambda: pump.run(lambda: owner), lambda: None, **more)
        )
        assert pieces == []


def test_a_stream_of_what_was_answered_before_still_comes_in_pieces(
    ledger: Ledger, servers: Addresses, pump: Pump, owner: UUID
) -> None:
    """An answer is remembered for those who ask the same; who reads along would get it all at once."""
    run = lambda: pump.run(lambda: owner)  # noqa: E731
    _, before = asyncio.run(read_along(ledger, servers.broker_url, run, lambda: None))
    pieces, text = asyncio.run(read_along(ledger, servers.broker_url, run, lambda: None, stream=True))
    assert text == before
    assert len(pieces) > 1
