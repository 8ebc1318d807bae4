"""A JSON body: read up to a limit, parsed strictly, and an object."""

import orjson
from fastapi import Request

from jobs.contract import limits
from jobs.errors import BadRequest, TooLarge, UnsupportedType


async def read_object(request: Request) -> dict[str, object]:
    """The JSON object that was sent. BadRequest or UnsupportedType for anything else, TooLarge over the limit."""
    refuse_encoding(request)
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedType(f"Unsupported content type: '{kind}'. Expected 'application/json'.")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limits.BODY_SIZE_MAX:
            raise TooLarge(f"The request body is larger than {limits.BODY_SIZE_MAX} bytes, the most it may have.")
    return _object(bytes(content))


def refuse_encoding(request: Request) -> None:
    """UnsupportedType for a compressed body: its real size is not known before it is unpacked."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedType(f"Unsupported content encoding: '{encoding}'. Send the body as it is.")


def _object(content: bytes) -> dict[str, object]:
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"We could not parse the JSON body of your request: {error.msg} (line {error.lineno}, "
            f"column {error.colno}). Expected a JSON object."
        ) from None
    if not isinstance(body, dict):
        raise BadRequest("The JSON body of your request is not an object.", code="invalid_type")
    return body
