"""What is sent without waiting arrives as it was sent, whatever is sent next and however much."""

import ctypes

import numpy as np
import pytest

from tests.worker.engine.paged.fake_card import Card
from worker.engine.device.staging import Staging


@pytest.mark.parametrize("size_bytes", [256, 4096, 2**20])
def test_each_turn_arrives_as_it_was_sent(size_bytes: int) -> None:
    """Also where there is less room than is sent, and nobody waits before the end."""
    card = Card()
    staging, random = Staging(card, size_bytes), np.random.default_rng(1)
    arrived, sent = [], []
    for _ in range(9):
        staging.turn()
        for _ in range(3):
            arrays = [random.integers(0, 255, random.integers(1, 900), np.uint8), random.random((3, 2)), np.arange(4)]
            for address, array in zip(staging.send(arrays), arrays, strict=True):
                found = np.zeros(array.nbytes, np.uint8)
                card.download(found, address)
                arrived.append(found)
                sent.append(array.tobytes())
                array[...] = 0
    card.wait()
    assert [found.tobytes() for found in arrived] == sent


def test_what_is_sent_alike_lies_alike() -> None:
    """Captured runs read where the first one did."""
    card = Card()
    staging = Staging(card, 4096)
    places = []
    for number in range(5):
        staging.turn()
        places.append(staging.send([np.full(7, number), np.full(3, number, np.int32)]))
    assert len({tuple(place) for place in places}) == 1
    card.wait()
    assert ctypes.c_int64.from_address(places[0][0]).value == 4
