"""One line of an input file, checked; and the lines of output and error files, written.

Pure: bytes in, values or bytes out.
"""

import hashlib
from dataclasses import dataclass

import orjson

from jobs.contract import limits
from jobs.contract.batch import Fault

REQUIRED = ("custom_id", "method", "url", "body")
TYPES: dict[str, tuple[type, str]] = {
    "custom_id": (str, "a string"),
    "method": (str, "a string"),
    "url": (str, "a string"),
    "body": (dict, "an object"),
}
EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was not executed because the batch was cancelled.")


@dataclass(frozen=True, slots=True)
class InputLine:
    """What ingest needs of a line."""

    custom_id: str
    model: str
    messages: object


def parse(raw: bytes | None, line_no: int, *, endpoint: str) -> InputLine | Fault:
    """A line of an input file, or its first fault. `raw` is None where the line was too long to keep.

    Only what makes a line a request of this batch is checked here; a bad parameter inside its body
    fails that line alone, when it runs.
    """
    if raw is None:
        return Fault(
            code="line_too_long",
            message=f"This line is longer than {limits.LINE_SIZE_MAX} bytes, the most a line may have.",
            line=line_no,
        )
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        line = None
    if not isinstance(line, dict):
        return Fault(code="invalid_json_line", message="This line is not parseable as valid JSON.", line=line_no)
    return (
        _fault_of_envelope(line, line_no, endpoint)
        or _fault_of_body(line["body"], line_no)
        or InputLine(line["custom_id"], line["body"]["model"], line["body"]["messages"])
    )


def _fault_of_envelope(line: dict[str, object], line_no: int, endpoint: str) -> Fault | None:
    for name in REQUIRED:
        if line.get(name) is None:
            return _missing(name, line_no)
        expected, spelled = TYPES[name]
        if not isinstance(line[name], expected):
            return Fault(
                code="invalid_type",
                message=f"Invalid type for '{name}': expected {spelled}.",
                param=name,
                line=line_no,
            )
    custom_id = str(line["custom_id"])
    if not 0 < len(custom_id) <= limits.CUSTOM_ID_CHARACTERS_MAX or "\0" in custom_id:
        return Fault(
            code="invalid_value",
            message=f"Invalid 'custom_id': expected 1 to {limits.CUSTOM_ID_CHARACTERS_MAX} characters, none U+0000.",
            param="custom_id",
            line=line_no,
        )
    if line["method"] != "POST":
        return Fault(
            code="invalid_method",
            message=f"Invalid method '{_short(line['method'])}'. Only POST is supported.",
            param="method",
            line=line_no,
        )
    if line["url"] != endpoint:
        return Fault(
            code="invalid_url",
            message="The URL provided for this request does not match the batch endpoint.",
            param="url",
            line=line_no,
        )
    return None


def _fault_of_body(body: dict[str, object], line_no: int) -> Fault | None:
    for name in ("model", "messages"):
        if body.get(name) is None:
            return _missing(f"body.{name}", line_no, shown=name)
    if not isinstance(body["model"], str):
        return Fault(
            code="invalid_type",
            message="Invalid type for 'model': expected a string.",
            param="body.model",
            line=line_no,
        )
    if body.get("stream"):
        return Fault(
            code="streaming_unsupported",
            message="Chat Completions: Streaming is not supported in the Batch API.",
            param="body.stream",
            line=line_no,
        )
    return None


def duplicate(custom_id: str, line_no: int) -> Fault:
    return Fault(
        code="duplicate_custom_id",
        message=f"The custom_id '{custom_id}' for this request is a duplicate of another request. "
        "The custom_id parameter must be unique for each request in a batch.",
        param="custom_id",
        line=line_no,
    )


def unknown_model(model: str, line_no: int) -> Fault:
    return Fault(
        code="model_not_found",
        message=f"The provided model '{_short(model)}' is not supported by the Batch API.",
        param="body.model",
        line=line_no,
    )


def other_model(model: str, line_no: int) -> Fault:
    return Fault(
        code="mismatched_model",
        message=f"The model '{_short(model)}' for this request does not match the rest of the batch. "
        "Each batch must contain requests for a single model.",
        param="body.model",
        line=line_no,
    )


def answered(batch_id: str, line_no: int, custom_id: str, status: int, body: str) -> bytes:
    """The line of an output or error file for a request that was executed. `body` is JSON already."""
    name = _name(batch_id, line_no)
    return orjson.dumps(
        {
            "id": f"batch_req_{name}",
            "custom_id": custom_id,
            "response": {"status_code": status, "request_id": f"req_{name}", "body": orjson.Fragment(body)},
            "error": None,
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def unanswered(batch_id: str, line_no: int, custom_id: str, reason: tuple[str, str]) -> bytes:
    """The line of an error file for a request that was never executed; `reason` is code and message."""
    code, message = reason
    return orjson.dumps(
        {
            "id": f"batch_req_{_name(batch_id, line_no)}",
            "custom_id": custom_id,
            "response": None,
            "error": {"code": code, "message": message},
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def _missing(param: str, line_no: int, shown: str | None = None) -> Fault:
    return Fault(
        code="missing_required_parameter",
        message=f"Missing required parameter: '{shown or param}'.",
        param=param,
        line=line_no,
    )


def _name(batch_id: str, line_no: int) -> str:
    """32 hexadecimal digits that are this line's, however often the file is written."""
    return hashlib.blake2b(f"{batch_id}:{line_no}".encode(), digest_size=16).hexdigest()


def _short(value: object) -> str:
    shown = str(value)
    return shown if len(shown) <= 100 else shown[:100] + "…"
