"""Files in parts, and their lines."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, text

from jobs import database, direct, files, quotas
from jobs.errors import NotFound
from jobs.keys import DEFAULT_PROJECT
from tests.jobs import making


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), max_size=9), st.data())
def test_lines_do_not_depend_on_where_the_parts_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    content = b"\n".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    edges = [0, *cuts, len(content)]
    parts = [content[a:b] for a, b in itertools.pairwise(edges)]
    expected = lines if not lines or lines[-1] else lines[:-1]
    assert list(files.lines(parts, size_max=100)) == expected


@pytest.mark.parametrize("cut", range(6))
def test_a_byte_order_mark_is_taken_off_wherever_a_part_ends(cut: int) -> None:
    content = b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n"
    assert list(files.lines([content[:cut], content[cut:]], size_max=100)) == [b"a", b"\xef\xbb\xbfb"]


@pytest.mark.parametrize("cut", range(30))
def test_a_line_that_is_too_long_is_none_wherever_it_is_cut(cut: int) -> None:
    content = b"ab\n" + b"x" * 20 + b"\ncd"
    assert list(files.lines([content[:cut], content[cut:]], size_max=10)) == [b"ab", None, b"cd"]


def test_a_file_comes_back_as_it_was_written(ledger: Engine) -> None:
    content = bytes(range(256)) * 10_000
    file = making.upload(ledger, content)
    assert file.size_bytes == len(content)
    parts = list(files.read(ledger, file.id))
    assert b"".join(parts) == content
    assert max(map(len, parts)) == files.PART_SIZE


def test_parts_that_were_stored_before_they_were_packed_are_read_as_ever(ledger: Engine) -> None:
    content = b"0123456789" * 300_000
    file = making.upload(ledger, content)
    with ledger.begin() as connection:
        plain = {"id": file.id, "content": content[: files.PART_SIZE]}
        connection.execute(
            text("""
                UPDATE file_part SET content = :content, packed = NULL, size_bytes = NULL
                 WHERE file_id = :id AND seq = 0
            """),
            plain,
        )
    assert b"".join(files.read(ledger, file.id)) == content
    for start in (5, files.PART_SIZE - 1, files.PART_SIZE, files.PART_SIZE + 7):
        assert b"".join(files.read(ledger, file.id, start=start, stop=start + 20)) == content[start : start + 20]


def test_what_repeats_itself_takes_little_room(ledger: Engine) -> None:
    making.upload(ledger, b'{"role": "user"}' * 100_000)
    assert making.scalar(ledger, "SELECT sum(octet_length(packed)) FROM file_part") < 100_000  # type: ignore[operator]


def test_an_unfinished_upload_is_invisible_and_swept_after_a_day(ledger: Engine) -> None:
    writer = files.Writer(ledger, project_id=DEFAULT_PROJECT, purpose="batch", filename="x.jsonl")
    writer.write(b"x" * files.PART_SIZE)
    with ledger.begin() as connection, pytest.raises(NotFound):
        files.get(connection, DEFAULT_PROJECT, writer.id)
    assert database.run(ledger, files.sweep) == 0
    database.run(ledger, lambda c: c.execute(text("UPDATE file SET created_at = now() - interval '25 hours'")))
    assert database.run(ledger, files.sweep) == 1
    assert making.scalar(ledger, "SELECT count(*) FROM file_part") == 0


def test_an_expired_file_is_gone(ledger: Engine) -> None:
    file = making.upload(ledger, b"x")
    database.run(ledger, lambda c: c.execute(text("UPDATE file SET expires_at = now()")))
    with ledger.begin() as connection, pytest.raises(NotFound):
        files.get(connection, DEFAULT_PROJECT, file.id)


@pytest.mark.parametrize("is_ascending", [True, False])
def test_pages_show_every_file_once(ledger: Engine, is_ascending: bool) -> None:
    made = [making.upload(ledger, b"x").id for _ in range(7)]
    seen: list[str] = []
    after = None
    while True:
        page = database.run(
            ledger,
            lambda c, after=after: files.find(  # type: ignore[misc]
                c, DEFAULT_PROJECT, purpose="batch", limit=3, after=after, is_ascending=is_ascending
            ),
        )
        seen += [file.id for file in page.files]
        if not page.has_more:
            break
        after = seen[-1]
    assert seen == (made if is_ascending else made[::-1])


def plan_of(ledger: Engine, work: Callable[[Connection], object]) -> str:
    """How Postgres does the first statement of `work`, which is not done."""
    asked: list[tuple[str, object]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    with ledger.connect() as connection:
        event.listen(connection, "before_cursor_execute", note)
        work(connection)
        event.remove(connection, "before_cursor_execute", note)
        connection.rollback()
        explained = connection.exec_driver_sql(f"EXPLAIN {asked[0][0]}", asked[0][1])  # type: ignore[arg-type]
        return "\n".join(explained.scalars())


def test_what_is_asked_again_and_again_is_not_asked_of_every_file_or_batch(ledger: Engine) -> None:
    made = """
        INSERT INTO project (id) VALUES ('other');
        INSERT INTO file (id, project_id, purpose, filename, state, size_bytes, expires_at)
        SELECT 'file-' || n, CASE WHEN n % 10 = 0 THEN 'default' ELSE 'other' END, 'batch', 'x.jsonl', 'ready', n,
               now() + interval '1 day'
          FROM generate_series(1, 20000) n;
        INSERT INTO batch (public_id, project_id, endpoint, completion_window, state, expires_at)
        SELECT 'batch_' || n, 'default', 'x', '24h', 'completed', now() FROM generate_series(1, 20000) n
    """
    database.run(ledger, lambda c: c.execute(text(made)))
    database.run_autocommit(ledger, lambda c: c.execute(text("VACUUM ANALYZE file, batch")))
    assert "Seq Scan" not in plan_of(ledger, files.sweep)
    assert "Seq Scan" not in plan_of(ledger, direct.sweep)
    summed = plan_of(ledger, lambda c: quotas.refuse_bytes(c, "default", more=0, stored_bytes=1 << 60))
    assert "Index Only Scan using file_project_id_created_at_idx" in summed
