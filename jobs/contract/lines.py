"""One line of an input file, checked; and the lines of output and error files, written.

Pure: bytes in, values or bytes out.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import orjson

from jobs.contract import limits
from jobs.contract.batch import Fault
from jobs.contract.errors import type_name

EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was not executed because the batch was cancelled.")


class InputLine(NamedTuple):
    """What ingest needs of a line, None where the line does not say it, and all its faults.

    A tuple, since a million of them are made.
    """

    custom_id: str | None = None
    model: str | None = None
    messages: object = None
    faults: Sequence[Fault] = ()


def parse(raw: bytes | None, line_no: int, *, endpoint: str) -> InputLine:
    """A line of an input file. `raw` is None where the line was too long to keep.

    Only what makes a line a request of this batch is checked here; a bad parameter inside its body
    fails that line alone, when it runs.
    """
    if raw is None:
        return InputLine(faults=[_too_long(line_no)])
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return InputLine(faults=[_not_json(raw, line_no)])
    if not isinstance(line, dict):
        return InputLine(faults=[_not_an_object(line, line_no)])
    custom_id, body = line.get("custom_id"), line.get("body")
    faults: list[Fault] = []
    if not is_custom_id(custom_id):
        faults.append(_bad_custom_id(custom_id, line_no))
        custom_id = None
    if line.get("method") != "POST":
        faults.append(_bad_method(line.get("method"), line_no))
    if line.get("url") != endpoint:
        faults.append(_bad_url(line.get("url"), line_no))
    if not isinstance(body, dict):
        faults.append(_missing_or_wrong("body", body, line_no, expected="an object"))
        return InputLine(custom_id, faults=faults)
    return _with_body(custom_id, body, faults, line_no)


def is_custom_id(found: object) -> bool:
    """Whether a value can name a line; Postgres stores no U+0000."""
    return isinstance(found, str) and 0 < len(found) <= limits.CUSTOM_ID_CHARACTERS_MAX and "\0" not in found


def _with_body(custom_id: str | None, body: dict[str, object], faults: list[Fault], line_no: int) -> InputLine:
    model, messages = body.get("model"), body.get("messages")
    if not isinstance(model, str):
        faults.append(_missing_or_wrong("model", model, line_no, within="body."))
        model = None
    if messages is None:
        faults.append(_missing_or_wrong("messages", None, line_no, within="body."))
    if body.get("stream"):
        faults.append(_streamed(line_no))
    return InputLine(custom_id, model, messages, faults)


def _missing_or_wrong(name: str, found: object, line_no: int, *, expected: str = "a string", within: str = "") -> Fault:
    if found is None:
        code, message = "missing_required_parameter", f"Missing required parameter: '{name}'."
    else:
        code, message = "invalid_type", f"Invalid type for '{name}': expected {expected}."
    return Fault(code=code, message=message, param=f"{within}{name}", line=line_no)


def _too_long(line_no: int) -> Fault:
    return Fault(
        code="line_too_long",
        message=f"This line is longer than {limits.LINE_SIZE_MAX} bytes, the most a line may have.",
        line=line_no,
    )


def _not_json(raw: bytes, line_no: int) -> Fault:
    message = "This line is not parseable as valid JSON."
    try:
        raw.decode()
    except UnicodeDecodeError:
        message += " It is not in UTF-8, as the file must be."
    return Fault(code="invalid_json_line", message=message, line=line_no)


def _not_an_object(found: object, line_no: int) -> Fault:
    message = f"Expected one request, a JSON object, in this line, but it is {type_name(found)}."
    return Fault(code="invalid_json_line", message=message, line=line_no)


def _streamed(line_no: int) -> Fault:
    return Fault(
        code="streaming_unsupported",
        message="Chat Completions: Streaming is not supported in the Batch API.",
        param="body.stream",
        line=line_no,
    )


def _bad_custom_id(found: object, line_no: int) -> Fault:
    if not isinstance(found, str):
        return _missing_or_wrong("custom_id", found, line_no)
    return Fault(
        code="invalid_value",
        message=f"Invalid 'custom_id': expected 1 to {limits.CUSTOM_ID_CHARACTERS_MAX} characters, none U+0000.",
        param="custom_id",
        line=line_no,
    )


def _bad_method(found: object, line_no: int) -> Fault:
    if not isinstance(found, str):
        return _missing_or_wrong("method", found, line_no)
    return Fault(
        code="invalid_method",
        message=f"Invalid method '{_short(found)}'. Only POST is supported.",
        param="method",
        line=line_no,
    )


def _bad_url(found: object, line_no: int) -> Fault:
    if not isinstance(found, str):
        return _missing_or_wrong("url", found, line_no)
    return Fault(
        code="invalid_url",
        message="The URL provided for this request does not match the batch endpoint.",
        param="url",
        line=line_no,
    )


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


def no_file(file_id: str, project_id: str) -> Fault:
    return Fault(
        code="invalid_request",
        message=f"Cannot find file {file_id}, or organization {project_id} does not have access to it.",
        param="file_id",
    )


def damaged_file(file_id: str) -> Fault:
    return Fault(
        code="invalid_request",
        message=f"File {file_id} cannot be read: what is stored is not what was sent. Please upload it again.",
        param="file_id",
    )


def no_room(model: str, project_id: str, lines_max: int) -> Fault:
    """As OpenAI words its limit of enqueued tokens; ours is of lines, which need no tokenizer to be counted."""
    return Fault(
        code="token_limit_exceeded",
        message=f"Enqueued request limit reached for {model} in organization {project_id}. Limit: {lines_max} "
        "enqueued requests. Please try again once some in_progress batches have been completed.",
    )


def empty_file() -> Fault:
    return Fault(
        code="empty_file",
        message="The input file is empty. Please ensure that the batch contains at least one request.",
    )


def too_many_lines() -> Fault:
    return Fault(
        code="too_many_tasks",
        message=f"The input file has more than {limits.LINES_MAX} requests, the most a batch may have.",
    )


def too_many_blank_lines() -> Fault:
    return Fault(code="too_many_tasks", message=f"The input file has more than {limits.LINES_MAX} blank lines.")


def more_faults(count: int) -> Fault:
    return Fault(
        code="more_errors",
        message=f"{count} more faults were found, which are not listed; the first {limits.FAULTS_KEPT_MAX} are.",
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


def _name(batch_id: str, line_no: int) -> str:
    """32 hexadecimal digits that are this line's, however often the file is written."""
    return hashlib.blake2b(f"{batch_id}:{line_no}".encode(), digest_size=16).hexdigest()


def _short(value: object) -> str:
    shown = str(value)
    return shown if len(shown) <= 100 else shown[:100] + "…"
