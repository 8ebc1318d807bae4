"""Long rows in pieces that overlap, so that what is shorter than the overlap stands whole in one of them."""

from collections.abc import Iterator


def windows(length: int, *, size: int, overlap: int) -> Iterator[slice]:
    """The pieces of a row, each of at most `size`, the first at its beginning and the last at its end."""
    assert 0 <= overlap < size, "each piece must go on"
    begin = 0
    while begin + size < length:
        yield slice(begin, begin + size)
        begin += size - overlap
    yield slice(begin, length)
