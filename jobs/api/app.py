"""The HTTP app: every route, on one page."""

from fastapi import FastAPI
from sqlalchemy import Engine

from jobs.api import batches, chat, errors, files, health, models, page, schema, uploads
from jobs.api.at_once import AtOnce
from jobs.api.edge import Edge
from jobs.api.services import Services
from jobs.hints import Hints
from jobs.settings import Settings
from jobs.workers import Served

ROUTES = (
    ("POST", "/v1/files", files.create),
    ("GET", "/v1/files", files.find),
    ("GET", "/v1/files/{file_id}", files.get),
    ("DELETE", "/v1/files/{file_id}", files.delete),
    ("GET", "/v1/files/{file_id}/content", files.content),
    ("POST", "/v1/uploads", uploads.create),
    ("POST", "/v1/uploads/{upload_id}/parts", uploads.add_part),
    ("POST", "/v1/uploads/{upload_id}/complete", uploads.complete),
    ("POST", "/v1/uploads/{upload_id}/cancel", uploads.cancel),
    ("POST", "/v1/batches", batches.create),
    ("GET", "/v1/batches", batches.find),
    ("GET", "/v1/batches/{batch_id}", batches.get),
    ("POST", "/v1/batches/{batch_id}/cancel", batches.cancel),
    ("GET", "/v1/models", models.find),
    ("GET", "/v1/models/{model_id:path}", models.get),
    ("POST", "/v1/chat/completions", chat.create),
    ("GET", "/healthz", health.get),
)


def create_app(engine: Engine, hints: Hints, settings: Settings) -> FastAPI:
    """The app over a ledger whose schema is current. It closes nothing that it was given."""
    app = FastAPI(
        title="Gristmill",
        description="The OpenAI Batch API on machines you own.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # a redirect would drop the envelope, and some clients the body
    )
    served, at_once = Served(silent_seconds=settings.lease_seconds), AtOnce(settings.requests_at_once)
    app.state.services = Services(engine, hints, settings, served, at_once)
    for method, path, endpoint in ROUTES:
        app.add_api_route(path, endpoint, methods=[method])
        if method == "GET":  # the headers of the same answer; the server leaves the body out
            app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/", page.get, methods=["GET", "HEAD"], include_in_schema=False)
    errors.register(app)
    app.add_middleware(Edge, requests_at_once=settings.requests_at_once)
    schema.register(app)
    return app
