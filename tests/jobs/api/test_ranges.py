"""Parts of a file, by the header Range."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from jobs import files
from jobs.api.ranges import Stretch, Unsatisfiable, stretch_of
from tests.jobs import making

CONTENT = bytes(range(256)) * 10_000  # three pieces


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_is_what_slicing_gives(size: int, first: int, last: int) -> None:
    content = bytes(size)
    for header, expected in (
        (f"bytes={first}-", content[first:]),
        (f"bytes={first}-{last}", content[first : last + 1] if first <= last else None),
        (f"bytes=-{last}", content[max(size - last, 0) :]),
    ):
        try:
            found = stretch_of(header, size)
        except Unsatisfiable:
            assert expected == b""
        else:
            assert found == (None if expected is None else Stretch(found.start, found.start + len(expected)))


@pytest.mark.parametrize(
    "header", [None, "", "bytes", "bytes=-", "bytes=a-b", "lines=0-1", "bytes=0-1,3-4", "bytes=5-2"]
)
def test_what_is_no_single_range_is_as_good_as_none(header: str | None) -> None:
    assert stretch_of(header, 10) is None


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1048575-1048576", 1048575, 1048577),
        ("bytes=1048576-", 1048576, None),
        ("bytes=-5", -5, None),
        ("bytes=0-99999999", 0, None),
    ],
)
def test_a_range_is_answered_with_just_its_bytes(client, ledger, asked, start, stop):
    file = making.upload(ledger, CONTENT)
    answer = client.get(f"/v1/files/{file.id}/content", headers={"range": asked})
    expected = CONTENT[start:stop]
    assert (answer.status_code, answer.content == expected) == (206, True)
    first = CONTENT.index(expected) if start == 0 else start % len(CONTENT)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(CONTENT)}"
    assert answer.headers["content-length"] == str(len(expected))


def test_a_range_beyond_the_end_is_refused_with_the_length(client, ledger):
    file = making.upload(ledger, b"abc")
    answer = client.get(f"/v1/files/{file.id}/content", headers={"range": "bytes=3-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */3")
    assert answer.json()["error"]["code"] == "invalid_range"


def test_a_download_goes_on_only_on_the_file_it_was_begun_on(client, ledger):
    file = making.upload(ledger, b"abc")
    path = f"/v1/files/{file.id}/content"
    whole = client.get(path)
    assert (whole.headers["accept-ranges"], whole.content) == ("bytes", b"abc")
    tag = whole.headers["etag"]
    assert client.get(path, headers={"range": "bytes=1-", "if-range": tag}).content == b"bc"
    assert client.get(path, headers={"range": "bytes=1-", "if-range": '"other"'}).content == b"abc"
    assert client.get(path, headers={"if-none-match": tag}).status_code == 304


@pytest.mark.parametrize("start", [0, 1, files.PART_SIZE - 1, files.PART_SIZE, 2_000_000, len(CONTENT)])
def test_reading_from_the_middle_gives_the_same_bytes(ledger: Engine, start: int) -> None:
    file = making.upload(ledger, CONTENT)
    for stop in (None, start, start + 1, len(CONTENT)):
        assert b"".join(files.read(ledger, file.id, start=start, stop=stop)) == CONTENT[start:stop]


def test_a_file_is_read_no_further_than_was_asked(ledger: Engine) -> None:
    file = making.upload(ledger, CONTENT)
    pieces = list(itertools.islice(files.read(ledger, file.id, start=files.PART_SIZE, stop=files.PART_SIZE + 1), 9))
    assert pieces == [CONTENT[files.PART_SIZE : files.PART_SIZE + 1]]
