"""Every failure as the wire's envelope, in one place, and a request id on every answer."""

import logging
import secrets
from collections.abc import Mapping
from http import HTTPStatus

import sqlalchemy.exc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs import database
from jobs.api.ranges import Unsatisfiable
from jobs.contract.errors import describe, envelope
from jobs.errors import BadRequest, Conflict, Failed, NotFound, Refusal, TooMany, Unauthenticated, Unavailable

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2
HEADERS: dict[type[Refusal], dict[str, str]] = {
    Unauthenticated: {"www-authenticate": "Bearer"},
    Conflict: {"x-should-retry": "false"},  # clients would else repeat what cannot succeed
    Unavailable: {"retry-after": str(RETRY_SECONDS)},
}


class Edge:
    """The outermost layer: names each request in `x-request-id`, and answers what nobody else caught."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(16)}"
        is_begun = False

        async def send_named(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            logger.info("client left", extra={"request_id": request_id, "path": scope["path"]})
        except Exception:
            logger.exception("request failed", extra={"request_id": request_id, "path": scope["path"]})
            if is_begun:
                raise  # the server cuts the connection, so that the client sees a broken answer, not a short one
            failed = Failed("The server had an error while answering your request.")
            await refuse(failed)(scope, receive, send_named)


def register(app: FastAPI) -> None:
    """Answer every failure of `app` with the envelope."""
    app.add_exception_handler(Refusal, _of_refusal)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(sqlalchemy.exc.DBAPIError, _of_database)
    app.add_exception_handler(sqlalchemy.exc.TimeoutError, _of_database)
    app.add_middleware(Edge)


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
    place = f"{request.method} {request.url.path}"
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return refuse(NotFound(f"Invalid URL ({place})"))
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "")
            refusal = BadRequest(f"Not allowed to {place}. Allowed methods: {allowed}.", code="method_not_supported")
            return refuse(refusal, status=error.status_code, headers=error.headers)
        case _:
            return refuse(BadRequest(str(error.detail)), status=error.status_code, headers=error.headers)


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
            logger.error("disk full", extra={"path": request.url.path})
            return refuse(Unavailable("The server has no room left to store this."))
        if not (isinstance(error, sqlalchemy.exc.OperationalError) or database.is_passing(error)):
            raise error
    logger.warning("database unavailable", extra={"path": request.url.path, "reason": str(error)})
    return refuse(Unavailable("The server cannot reach its database. Please try again soon."))
