"""/healthz: whether this process can do its work now."""

import sqlalchemy
import sqlalchemy.exc

from jobs.api.services import WithServices
from jobs.errors import Unavailable


def get(services: WithServices) -> dict[str, str]:
    """Ok, or Unavailable without a database. Not tried again: who asks wants to know about now."""
    try:
        with services.engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
    except sqlalchemy.exc.SQLAlchemyError:
        raise Unavailable("The server cannot reach its database.") from None
    return {"status": "ok"}
