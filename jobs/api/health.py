"""/healthz: whether this process can do its work now."""

import sqlalchemy
import sqlalchemy.exc

from jobs.api.services import WithServices
from jobs.errors import Unavailable


def get(services: WithServices) -> dict[str, str]:
    """Ok, or Unavailable without a database. Not tried again: who asks wants to know about now.

    That an idle connection was cut says nothing about now: the next is a new one.
    """
    for _ in range(2):
        try:
            with services.engine.connect() as connection:
                connection.execute(sqlalchemy.text("SELECT 1"))
        except sqlalchemy.exc.SQLAlchemyError as error:
            if not (isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated):
                break
        else:
            return {"status": "ok"}
    raise Unavailable("The server cannot reach its database.")
