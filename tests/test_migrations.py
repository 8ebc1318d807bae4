"""Each revision that ever was is brought to the newest with data in its tables: nothing is lost, and work goes on.

A new revision is covered by being there. A new table has to get a row in `full`.
"""

import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import Engine, MetaData, text

from gristmill.embedded import Addresses
from gristmill.embedded.postgres import ROLE, SUPERUSER
from jobs import audit, batches, database, export, keys, migrate, quotas, results, uploads, webhooks
from jobs.batches import Batch
from jobs.contract.upload import CreateUpload
from jobs.files import Writer
from jobs.states import BatchState
from jobs.sweeper import Duty, _is_due
from jobs.tables import metadata
from tests.jobs import making

SCRIPTS = ScriptDirectory.from_config(migrate._config(None))
REVISIONS = [script.revision for script in reversed(list(SCRIPTS.walk_revisions()))]


@pytest.fixture
def old_url(servers: Addresses) -> Iterator[str]:
    """An empty database beside the other."""
    name = f"old_{uuid4().hex[:8]}"
    superuser = servers.database_url.replace(f"//{ROLE}:", f"//{SUPERUSER}:").replace(f"/{ROLE}?", "/postgres?")
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(ROLE)))
        yield servers.database_url.replace(f"/{ROLE}?", f"/{name}?")
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def full(ledger: Engine) -> dict[BatchState, Batch]:
    """A row in each table, and a batch in each state but `expired`."""
    made = {}
    key = database.run(ledger, lambda c: keys.create(c, name="ann"))
    database.run(ledger, lambda c: quotas.begin_upload(c, key.split("_")[1], uploads_at_once=9))
    database.run(ledger, lambda c: webhooks.add(c, "default", "https://example.com/hook", allows_private=True))
    database.run(ledger, lambda c: _is_due(c, Duty("test", 60, lambda _: None)))
    order = CreateUpload(filename="a.jsonl", purpose="batch", bytes=3, mime_type="application/jsonl")
    upload = database.run(ledger, lambda c: uploads.create(c, "default", order, upload_id=uploads.new_id()))
    writer = Writer(ledger, project_id="default", purpose="batch", filename="part")
    writer.write(b"abc")
    writer.finish()
    database.run(ledger, lambda c: uploads.add_part(c, "default", upload.id, writer, part_id=uploads.new_part_id()))
    made[BatchState.VALIDATING] = making.create(ledger, "file-unknown")
    made[BatchState.FAILED] = making.ingest(ledger, [b"{}"])
    for state in (BatchState.IN_PROGRESS, BatchState.COMPLETED, BatchState.CANCELLED, BatchState.FINALIZING):
        batch = made[state] = making.ingest(ledger, [making.line(f"r{n}", content="Grüße \\ \t") for n in range(10)])
        answer(ledger, batch, chunks=1 if state in (BatchState.IN_PROGRESS, BatchState.CANCELLED) else 3)
        if state is BatchState.IN_PROGRESS:
            making.claim(ledger, batch, making.worker(ledger))
        if state is BatchState.CANCELLED:
            database.run(ledger, lambda c, b=batch: batches.cancel(c, "default", b.public_id))  # type: ignore[misc]
        if state in (BatchState.COMPLETED, BatchState.CANCELLED):
            end(ledger, batch)
    for table in metadata.sorted_tables:
        assert making.scalar(ledger, f'SELECT count(*) FROM "{table.name}"'), f"there is no row in {table.name}"
    return made


def answer(ledger: Engine, batch: Batch, chunks: int) -> None:
    for lease in making.claim(ledger, batch, making.worker(ledger), chunks=chunks):
        stored = making.results(lease.line_numbers)
        database.run(ledger, lambda c, e=lease, s=stored: results.flush(c, e, s))  # type: ignore[misc]
    database.run(ledger, lambda c: batches.close_if_answered(c, batch.id))


def end(ledger: Engine, batch: Batch) -> None:
    export.finalize(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)


def unpack(ledger: Engine) -> None:
    """Store the parts of files as it was done before there was `packed`."""
    with ledger.begin() as connection:
        for file_id, seq, packed in connection.execute(text("SELECT file_id, seq, packed FROM file_part")).all():
            connection.execute(
                text("""
                    UPDATE file_part SET content = :content, packed = NULL, size_bytes = NULL
                     WHERE file_id = :file_id AND seq = :seq
                """),
                {"file_id": file_id, "seq": seq, "content": zlib.decompress(packed)},
            )


def upgrade(engine: Engine, revision: str) -> None:
    with engine.connect() as connection:
        command.upgrade(migrate._config(connection), revision)
        connection.commit()


def rows(url: str, table: str, columns: list[str]) -> bytes:
    """What stands in some columns of a table, as COPY tells it, in the order of those columns."""
    names = ", ".join(f'"{name}"' for name in columns)
    order = ", ".join(f'"{name}"::text' for name in columns)
    query = f'COPY (SELECT {names} FROM "{table}" ORDER BY {order}) TO STDOUT'
    with psycopg.connect(url) as connection, connection.cursor() as cursor, cursor.copy(query) as copied:
        return b"".join(copied)


def fill(url: str, table: str, columns: list[str], content: bytes) -> None:
    names = ", ".join(f'"{name}"' for name in columns)
    statement = f'COPY "{table}" ({names}) FROM STDIN'
    with psycopg.connect(url) as connection, connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(content)


@pytest.mark.parametrize("revision", REVISIONS)
def test_data_of_each_revision_are_brought_to_the_newest_and_work_goes_on(
    ledger: Engine, servers: Addresses, old_url: str, revision: str
) -> None:
    made = full(ledger)
    old = database.connect(old_url)
    upgrade(old, revision)
    known = MetaData()
    known.reflect(old)
    if "packed" not in known.tables["file_part"].columns:
        unpack(ledger)
    kept = {
        table.name: [column.name for column in table.columns if column.name in metadata.tables[table.name].columns]
        for table in known.sorted_tables
        if table.name in metadata.tables
    }
    for table, columns in kept.items():
        fill(old_url, table, columns, rows(servers.database_url, table, columns))

    migrate.upgrade(old_url)

    for table, columns in kept.items():
        assert rows(old_url, table, columns) == rows(servers.database_url, table, columns), table
    assert list(audit.faults(old, making.SETTINGS)) == list(audit.faults(ledger, making.SETTINGS)) == []
    for state in (BatchState.COMPLETED, BatchState.CANCELLED, BatchState.IN_PROGRESS):
        assert making.fetch(old, made[state]).completed == making.fetch(ledger, made[state]).completed
    with old.begin() as connection:
        connection.execute(text("UPDATE chunk SET state = 'ready', owner = NULL WHERE state = 'leased'"))
    answer(old, made[BatchState.IN_PROGRESS], chunks=3)
    for state in (BatchState.IN_PROGRESS, BatchState.FINALIZING):
        end(old, made[state])
        assert making.fetch(old, made[state]).state is BatchState.COMPLETED
    assert list(audit.faults(old, making.SETTINGS)) == []
    old.dispose()


def test_packed_parts_are_plain_again_for_a_program_of_before(ledger: Engine, servers: Addresses, old_url: str) -> None:
    content = making.line("a") * 20_000
    file = making.upload(ledger, content)
    old = database.connect(old_url)
    upgrade(old, "0005")
    for table in ("project", "file", "file_part"):
        columns = list(metadata.tables[table].columns.keys())
        fill(old_url, table, columns, rows(servers.database_url, table, columns))
    with old.connect() as connection:
        command.downgrade(migrate._config(connection), "0004")
        connection.commit()
    with old.begin() as connection:
        query = text("SELECT content FROM file_part WHERE file_id = :id ORDER BY seq")
        assert b"".join(connection.execute(query, {"id": file.id}).scalars()) == content
    old.dispose()


UPGRADE = "import sys; from jobs import migrate; migrate.upgrade(sys.argv[1])"


def test_programs_that_bring_the_tables_up_at_the_same_moment_do_it_once(old_url: str) -> None:
    """As the units of systemd do on a machine that starts."""
    command = [sys.executable, "-c", UPGRADE, old_url]
    with psycopg.connect(old_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [migrate.LOCK])
        programs = [
            subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        deadline = time.monotonic() + 60
        while connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() != (3,):
            assert time.monotonic() < deadline, "they do not wait for each other"
            time.sleep(0.02)
    said = [program.communicate(timeout=60)[1] for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0], said
    ledger = database.connect(old_url)
    migrate.check(ledger)
    ledger.dispose()
