"""The description of the API in OpenAPI's words: what the routes read by hand is described by its own models."""

from collections.abc import Callable

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from jobs.contract.batch import CreateBatch
from jobs.contract.chat import ChatCompletion
from jobs.contract.completion import Chunk, Completion
from jobs.contract.error import ErrorEnvelope
from jobs.contract.upload import PURPOSES, CompleteUpload, CreateUpload

REFERENCE = "#/components/schemas/{model}"
BODIES: dict[str, type[BaseModel]] = {
    "/v1/batches": CreateBatch,
    "/v1/uploads": CreateUpload,
    "/v1/uploads/{upload_id}/complete": CompleteUpload,
    "/v1/chat/completions": ChatCompletion,
}
BYTES = {"type": "string", "format": "binary"}
FORMS: dict[str, dict[str, object]] = {
    "/v1/files": {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": BYTES,
            "purpose": {"type": "string", "enum": list(PURPOSES)},
            "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
            "expires_after[seconds]": {"type": "integer", "minimum": 3_600, "maximum": 2_592_000},
        },
        "additionalProperties": False,
    },
    "/v1/uploads/{upload_id}/parts": {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {**BYTES, "minLength": 1}},
        "additionalProperties": False,
    },
}
OPEN = frozenset({"/healthz"})  # routes that ask for no key


def register(app: FastAPI) -> None:
    """Let `app` describe itself; worked out when it is first asked."""
    app.openapi = _once(lambda: _describe(app))  # type: ignore[method-assign]


def _once(make: Callable[[], dict[str, object]]) -> Callable[[], dict[str, object]]:
    made: list[dict[str, object]] = []

    def get() -> dict[str, object]:
        if not made:
            made.append(make())
        return made[0]

    return get


def _describe(app: FastAPI) -> dict[str, object]:
    described = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = described.setdefault("components", {})
    components.setdefault("schemas", {}).update(_models())
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            _complete(path, method, operation)
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    return described


def _models() -> dict[str, object]:
    """The schemas of what is read and written by hand."""
    read = [(model, "validation") for model in (*BODIES.values(), Completion, Chunk, ErrorEnvelope)]
    _, schema = models_json_schema(read, ref_template=REFERENCE)  # type: ignore[arg-type]
    found: dict[str, object] = schema["$defs"]
    return found


def _complete(path: str, method: str, operation: dict[str, object]) -> None:
    """Add to one operation its body, its refusals and whether it asks for a key."""
    if method == "post" and path in BODIES:
        operation["requestBody"] = _content("application/json", _reference(BODIES[path]))
    elif method == "post" and path in FORMS:
        operation["requestBody"] = _content("multipart/form-data", FORMS[path])
    for parameter in operation.get("parameters", ()):  # type: ignore[attr-defined]
        bounds = parameter["schema"]
        for ours, theirs in (("ge", "minimum"), ("le", "maximum")):
            if ours in bounds:
                bounds[theirs] = bounds.pop(ours)
    if path not in OPEN:
        operation["security"] = [{"key": []}]
    responses = operation["responses"]
    assert isinstance(responses, dict)
    responses.pop("422", None)
    for kind in ("4XX", "5XX"):
        responses[kind] = {
            "description": "Refused" if kind == "4XX" else "Failed",
            "content": {"application/json": {"schema": _reference(ErrorEnvelope)}},
        }
    if path == "/v1/chat/completions":
        responses["200"]["content"] = {
            "application/json": {"schema": _reference(Completion)},
            "text/event-stream": {"schema": {"type": "string"}, "x-event": _reference(Chunk)},
        }
    elif path.endswith("/content"):
        content = {"content": {"application/octet-stream": {"schema": BYTES}}}
        responses["200"] = {"description": "The whole file", **content}
        responses["206"] = {"description": "The bytes of its range", **content}
        responses["304"] = {"description": "The file that is already there"}


def _content(kind: str, schema: object) -> dict[str, object]:
    return {"required": True, "content": {kind: {"schema": schema}}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.__name__)}
