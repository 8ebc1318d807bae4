import numpy as np

from worker.engine import noise


def _philox(counter: list[int], key: list[int]) -> list[int]:
    columns = noise.philox(np.array([counter], np.uint64).T, np.array([key], np.uint64).T)
    return [int(word) for word in columns[:, 0]]


def test_philox_gives_the_words_that_its_authors_published() -> None:
    """The known answers of Random123's kat_vectors for philox4x32 with 10 rounds."""
    assert _philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert _philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert _philox(pi, [0xA4093822, 0x299F31D0]) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_a_number_does_not_depend_on_its_neighbours_or_on_how_many_attempts_are_asked_for() -> None:
    seeds, choices, positions = [5, -1, 2**63, 5], [0, 0, 1, 1], [7, 7, 900, 7]
    together = noise.pairs(seeds, choices, positions, range(6))
    for row, one in enumerate(zip(seeds, choices, positions, strict=True)):
        seed, choice, position = one
        for attempt in range(6):
            alone = noise.pairs([seed], [choice], [position], range(attempt, attempt + 1))
            assert alone[0, 0].tolist() == together[row, attempt].tolist()
    assert len(np.unique(together)) == together.size == 4 * 6 * 2


def test_numbers_fill_the_unit_interval_evenly_over_seeds_choices_positions_and_attempts() -> None:
    count = 20_000
    walks = {
        "seeds": noise.pairs(range(count), [0] * count, [3] * count, range(1))[:, 0],
        "choices": noise.pairs([9] * count, range(count), [3] * count, range(1))[:, 0],
        "positions": noise.pairs([9] * count, [0] * count, range(count), range(1))[:, 0],
        "attempts": noise.pairs([9], [0], [3], range(count))[0],
    }
    for walk in walks.values():
        assert abs(np.corrcoef(walk[:, 0], walk[:, 1])[0, 1]) < 0.03
        for numbers in walk.T:
            counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
            expected = count / 100
            chi_square = ((counts - expected) ** 2 / expected).sum()
            assert chi_square < 160  # 99 degrees of freedom: passed by chance once in 10,000
            assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
