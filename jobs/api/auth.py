"""Who asks: the key in the Authorization header decides whose objects a request may see."""

from typing import Annotated

from fastapi import Depends, Request

from jobs import database, keys
from jobs.api.services import WithServices
from jobs.errors import BadRequest
from jobs.keys import Caller


def caller_of(request: Request, services: WithServices) -> Caller:
    """The caller behind the request. Unauthenticated without a key that we know.

    The address is checked here too, since every route with an id in it comes by: Postgres stores no U+0000.
    """
    if "\0" in request.url.path or "%00" in request.url.query:
        raise BadRequest("Invalid URL: it must not contain the character U+0000.", code="invalid_value")
    key = _bearer(request.headers.get("authorization", ""))
    return database.run(services.engine, lambda connection: keys.authenticate(connection, key))


ByCaller = Annotated[Caller, Depends(caller_of)]


def _bearer(header: str) -> str | None:
    scheme, _, key = header.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
