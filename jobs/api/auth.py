"""Who asks: the key in the Authorization header decides whose objects a request may see, and how much it may ask."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID

import anyio
import sqlalchemy
from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from jobs import database, quotas
from jobs.api.services import Services, WithServices
from jobs.errors import BadRequest
from jobs.keys import Caller, Limits, Scope

EVERYTHING = frozenset(Scope)


async def caller_of(request: Request, services: WithServices) -> AsyncIterator[Caller]:
    """The caller behind the request, with the limits that hold for it.

    Unauthenticated without a key that we know, Forbidden where the key is not for this, TooMany where it asks
    for more than it may. An upload holds a permit until it is answered. The address is checked here too, since
    every route with an id in it comes by: Postgres stores no U+0000.
    """
    path: str = request.scope["path"]  # by which the route was found; in `request.url` the client's Host has a say
    if "\0" in path or b"%00" in request.scope["query_string"]:
        raise BadRequest("Invalid URL: it must not contain the character U+0000.", code="invalid_value")
    if repeated := first_repeated(name for name, _ in request.query_params.multi_items()):
        raise BadRequest(f"Invalid '{repeated}': it is given more than once.", code="invalid_value", param=repeated)
    key = _bearer(request.headers.get("authorization", ""))
    caller, limits = await run_in_threadpool(_admit, services, key)
    for scope in sorted(scopes_for(request.method, path)):
        caller.require(scope)
    with services.at_once.one_of(caller.project_id):
        if is_upload(request.method, path):
            async with _permitted(request, services, caller, limits):
                yield caller
        else:
            yield caller


ByCaller = Annotated[Caller, Depends(caller_of)]


@asynccontextmanager
async def _permitted(request: Request, services: Services, caller: Caller, limits: Limits) -> AsyncIterator[None]:
    """An upload has its permit, for as long as this lasts."""
    size = request.headers.get("content-length", "")
    permit = await run_in_threadpool(
        _permit, services, caller, limits, int(size) if size.isascii() and size.isdigit() else 0
    )
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(database.run, services.engine, lambda c: quotas.end_upload(c, permit))


def scopes_for(method: str, path: str) -> frozenset[Scope]:
    """What a key must be for, to be let through to a route; a route that nobody thought of here needs all."""
    is_read = method in ("GET", "HEAD")
    match path.split("/")[1:]:
        case ["v1", "models", *_]:
            return frozenset()
        case ["v1", "files", _, "content"]:
            return frozenset({Scope.RESULTS_READ})
        case ["v1", "files" | "uploads", *_]:
            return frozenset({Scope.BATCHES_READ if is_read else Scope.FILES_WRITE})
        case ["v1", "batches", *_]:
            return frozenset({Scope.BATCHES_READ if is_read else Scope.BATCHES_WRITE})
        case ["v1", "chat", *_]:
            return frozenset({Scope.CHAT_WRITE})
    return EVERYTHING


def is_upload(method: str, path: str) -> bool:
    """Whether a request brings bytes that will be kept."""
    match method, path.split("/")[1:]:
        case ("POST", ["v1", "files"]) | ("POST", ["v1", "uploads", _, "parts"]):
            return True
    return False


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that comes again. No parameter of ours is a list; of two values, one would be ignored.

    In one pass: an address has room for thousands of names, and nobody has shown a key yet.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _admit(services: Services, key: str | None) -> tuple[Caller, Limits]:
    caller = database.run_autocommit(  # what it writes is one statement
        services.engine,
        lambda c: quotas.admit(c, key, requests_per_minute=services.settings.requests_per_minute),
    )
    return caller, caller.limits.over(services.settings)


def _permit(services: Services, caller: Caller, limits: Limits, size: int) -> UUID:
    def permit(connection: sqlalchemy.Connection) -> UUID:
        quotas.refuse_bytes(connection, caller.project_id, more=size, stored_bytes=services.settings.stored_bytes)
        assert limits.uploads_at_once is not None
        return quotas.begin_upload(connection, caller.key_id, uploads_at_once=limits.uploads_at_once)

    return database.run(services.engine, permit)


def _bearer(header: str) -> str | None:
    scheme, _, key = header.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
