"""Brings the schema to the newest revision, one process at a time, and refuses to run on any other."""

from importlib import resources

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from jobs import database
from jobs.settings import SettingsError

LOCK = 0x67726973746D  # any number that only we lock
WAIT = "60s"


def upgrade(database_url: str) -> None:
    """Run the revisions that are missing, under an advisory lock; nothing to do is no error."""
    engine = database.connect(database_url, connections=2)
    try:
        with engine.connect() as connection:
            connection.execute(text(f"SET lock_timeout = '{WAIT}'"))
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            connection.commit()  # the lock is the session's, and outlives the transaction
            command.upgrade(_config(connection), "head")
            connection.commit()
    finally:
        engine.dispose()


def check(engine: Engine) -> None:
    """SettingsError in one sentence unless the schema is at the revision this program was made for."""
    expected = ScriptDirectory.from_config(_config(None)).get_current_head()
    found = database.run(engine, lambda c: MigrationContext.configure(c).get_current_revision())
    if found is None:
        raise SettingsError("The database has no tables yet; make them with: gristmill migrate")
    if found != expected:
        raise SettingsError(
            f"The database is at schema revision {found} and this program needs {expected}: "
            "run `gristmill migrate` of the newest version you use."
        )


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")))
    config.attributes["connection"] = connection
    return config
