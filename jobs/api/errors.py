"""Every failure as the wire's envelope, in one place."""

import logging
from collections.abc import Mapping
from http import HTTPStatus

import sqlalchemy.exc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.routing import Match

from jobs import database
from jobs.api.ranges import Unsatisfiable
from jobs.contract.errors import describe, envelope
from jobs.errors import BadRequest, Conflict, NotFound, Refusal, TimedOut, TooMany, Unauthenticated, Unavailable

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2
HEADERS: dict[type[Refusal], dict[str, str]] = {
    Unauthenticated: {"www-authenticate": "Bearer"},
    Conflict: {"x-should-retry": "false"},  # clients would else repeat what cannot succeed
    TimedOut: {"connection": "close"},  # the rest of the body would be read as the next request
    Unavailable: {"retry-after": str(RETRY_SECONDS)},
}


def register(app: FastAPI) -> None:
    """Answer every failure of `app` that has a name with the envelope; the edge has the others."""
    app.add_exception_handler(Refusal, _of_refusal)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(sqlalchemy.exc.DBAPIError, _of_database)
    app.add_exception_handler(sqlalchemy.exc.TimeoutError, _of_database)


def refuse(refusal: Refusal, *, status: int | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a refused request."""
    known = HEADERS.get(type(refusal), {})
    if isinstance(refusal, TooMany):
        known = {"retry-after": str(refusal.retry_seconds)}
    elif isinstance(refusal, Unsatisfiable):
        known = {"content-range": f"bytes */{refusal.size_bytes}"}
    return JSONResponse(envelope(refusal), status_code=status or refusal.status, headers={**known, **(headers or {})})


def _of_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refuse(error)


def _of_http(request: Request, error: Exception) -> Response:
    """Unknown routes and methods, which the router finds."""
    assert isinstance(error, HTTPException)
    place = f"{request.method} {request.scope['path']}"
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            is_misplaced = not request.url.path.startswith("/v1/") or request.url.path.startswith("/v1/v1/")
            hint = ". Check the base URL: it ends in /v1, once." if is_misplaced else ""
            return refuse(NotFound(f"Invalid URL ({place}){hint}"))
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(sorted(_methods(request)))
            refusal = BadRequest(f"Not allowed to {place}. Allowed methods: {allowed}.", code="method_not_supported")
            return refuse(refusal, status=error.status_code, headers={"allow": allowed})
        case _:
            return refuse(BadRequest(str(error.detail)), status=error.status_code, headers=error.headers)


def _methods(request: Request) -> set[str]:
    """Those of all routes of a path; the router tells those of the first."""
    routes = (route for route in request.app.routes if isinstance(route, APIRoute))
    found = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return {name for route in found for name in route.methods or ()}


def _of_validation(_: Request, error: Exception) -> Response:
    """A query parameter that is not what the route takes; its place begins with the word `query`."""
    assert isinstance(error, RequestValidationError)
    found: ErrorDetails = error.errors()[0]
    found["loc"] = found["loc"][1:]
    return refuse(describe(found))


def _of_database(request: Request, error: Exception) -> Response:
    """A Postgres that cannot answer now. Whatever else it says is our fault, and goes on to the edge."""
    if isinstance(error, sqlalchemy.exc.DBAPIError):
        if database.is_disk_full(error):
            logger.error("disk full", extra={"path": request.scope["path"]})
            return refuse(Unavailable("The server has no room left to store this."))
        if not (isinstance(error, sqlalchemy.exc.OperationalError) or database.is_passing(error)):
            raise error
    logger.warning("database unavailable", extra={"path": request.scope["path"], "reason": str(error)})
    return refuse(Unavailable("The server cannot reach its database. Please try again soon."))
