"""The ledger of a command: on the operator's servers, or on embedded ones for as long as the command lasts."""

import contextlib
from collections.abc import Iterator

import sqlalchemy

from gristmill import operate
from gristmill.commands import settings as commands
from jobs import migrate


@contextlib.contextmanager
def ledger(*, is_upgraded: bool = False) -> Iterator[sqlalchemy.Engine]:
    """The database, at this version's schema: brought there if `is_upgraded`, else a Fault where it is not."""
    with operate.servers(commands.read_quietly(), commands.say) as (settings, _):
        assert settings.database_url is not None
        if is_upgraded:
            migrate.upgrade(settings.database_url)
        with operate.ledger(settings) as engine:
            migrate.check(engine)
            yield engine
