"""Pieces of text over a real broker, and over none."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from gristmill.embedded import Addresses
from jobs import streams
from jobs.streams import Piece, Publisher, Subscription

NOWHERE = "redis+socket:///nowhere/valkey.sock?virtual_host=0"


@pytest.fixture
def publisher(servers: Addresses) -> Iterator[Publisher]:
    publisher = Publisher(servers.broker_url)
    yield publisher
    publisher.close()


def heard(url: str, act: Callable[[], None], collect: Callable[[Subscription], Awaitable[list[Piece]]]) -> list[Piece]:
    """What `collect` hears on the channel of the request `a` once `act` was done."""

    async def listen() -> list[Piece]:
        async with streams.subscribe(url, "a") as subscription:
            act()
            return await collect(subscription)

    return asyncio.run(listen())


def pieces(count: int) -> Callable[[Subscription], Awaitable[list[Piece]]]:
    async def collect(subscription: Subscription) -> list[Piece]:
        found: list[Piece] = []
        deadline = time.monotonic() + 10
        while len(found) < count:
            assert time.monotonic() < deadline, found
            if (piece := await subscription.next(0.1)) is not None:
                found.append(piece)
        return found

    return collect


def test_a_subscriber_hears_the_pieces_of_its_request_in_order(servers: Addresses, publisher: Publisher) -> None:
    def publish() -> None:
        for start in range(0, 600, 2):
            publisher.publish("b", 0, "no", start=start)
            publisher.publish("a", start % 3, "ü\u2028", start=start)

    expected = [Piece(start % 3, start, "ü\u2028") for start in range(0, 600, 2)]
    assert heard(servers.broker_url, publish, pieces(300)) == expected


def test_what_was_published_before_is_not_heard(servers: Addresses, publisher: Publisher) -> None:
    publisher.publish("a", 0, "early", start=0)
    publisher.close()
    later = Publisher(servers.broker_url)
    found = heard(servers.broker_url, lambda: later.publish("a", 0, "late", start=5), pieces(1))
    later.close()
    assert found == [Piece(0, 5, "late")]


def test_waiting_ends_in_time_with_nothing(servers: Addresses) -> None:
    async def collect(subscription: Subscription) -> list[Piece]:
        assert subscription.is_open
        assert await subscription.next(0) is None
        assert await subscription.next(0.01) is None
        return []

    assert heard(servers.broker_url, lambda: None, collect) == []


def test_without_a_broker_nothing_fails_and_nothing_is_heard() -> None:
    async def collect(subscription: Subscription) -> list[Piece]:
        assert not subscription.is_open
        assert await subscription.next(60) is None
        return []

    def publish() -> None:
        publisher = Publisher(NOWHERE)
        publisher.publish("a", 0, "lost", start=0)
        publisher.close()

    assert heard(NOWHERE, publish, collect) == []
