"""The error envelope of the wire, and the translation of faults in what was sent into OpenAI's words."""

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from jobs.errors import BadRequest, Refusal

TYPE_NAMES = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "finite_number": "a decimal",
}


def envelope(refusal: Refusal) -> dict[str, object]:
    """The body of an error answer: always all four keys."""
    return {
        "error": {
            "message": refusal.message,
            "type": refusal.kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def envelope_json(refusal: Refusal) -> str:
    return orjson.dumps(envelope(refusal)).decode()


def refusal_of(error: ValidationError) -> BadRequest:
    """The one fault that OpenAI would report: what is missing first, then unknown keys, then the others.

    Pydantic lists faults in the order of the fields, which follow OpenAI's order of checks.
    """
    ranks = {"missing": 0, "extra_forbidden": 1}
    fault = min(error.errors(include_url=False), key=lambda fault: ranks.get(fault["type"], 2))
    return describe(fault)


def describe(fault: ErrorDetails) -> BadRequest:
    """One of pydantic's faults in OpenAI's words, with its code and the path of the parameter."""
    path, found, kind = path_of(fault["loc"]), fault["input"], fault["type"]
    limits = fault.get("ctx", {})
    match kind:
        case "missing":
            return _missing(path)
        case "extra_forbidden":
            return BadRequest(f"Unknown parameter: '{path}'.", code="unknown_parameter", param=path)
        case "greater_than_equal" | "less_than_equal":
            return _out_of_range(path, found, limits, is_below=kind == "greater_than_equal")
        case "too_long":
            return _too_long(path, found, limits)
        case "string_too_long":
            return BadRequest(
                f"Invalid '{path}': string too long. Expected a string with maximum length "
                f"{limits['max_length']}, but got a string with length {len(found)} instead.",
                code="string_above_max_length",
                param=path,
            )
        case "too_short" | "string_too_short":
            return _empty(path, "array" if kind == "too_short" else "string")
        case "literal_error" | "enum":
            return _not_among(path, found, limits["expected"])
        case "unsupported_part":
            return _unsupported_part(f"{path}[{limits['place']}].type", limits["part"])
        case "value_error":
            return BadRequest(str(limits["error"]), code="invalid_value", param=path)
        case _:
            expected = fault["msg"] if kind == "neither" else TYPE_NAMES.get(kind, "a different type")
            return BadRequest(
                f"Invalid type for '{path}': expected {expected}, but got {type_name(found)} instead.",
                code="invalid_type",
                param=path,
            )


def path_of(location: tuple[int | str, ...]) -> str:
    """`('messages', 0, 'role')` as `messages[0].role`."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step.startswith("<"):
            continue  # which of several types was meant
        elif path:
            path += f".{step}"
        else:
            path = step
    return path


def type_name(value: object) -> str:
    """What OpenAI calls the type of a JSON value, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _missing(path: str) -> BadRequest:
    if path == "model":
        return BadRequest("you must provide a model parameter")
    return BadRequest(f"Missing required parameter: '{path}'.", code="missing_required_parameter", param=path)


def _empty(path: str, noun: str) -> BadRequest:
    article = "an" if noun == "array" else "a"
    return BadRequest(
        f"Invalid '{path}': empty {noun}. Expected {article} {noun} with minimum length 1, "
        f"but got an empty {noun} instead.",
        code=f"empty_{noun}",
        param=path,
    )


def _not_among(path: str, found: object, expected: str) -> BadRequest:
    supported = expected.replace(" or ", " and ")
    if isinstance(found, str):
        return BadRequest(
            f"Invalid value: '{found}'. Supported values are: {supported}.", code="invalid_value", param=path
        )
    return BadRequest(
        f"Invalid type for '{path}': expected one of {supported}, but got {type_name(found)} instead.",
        code="invalid_type",
        param=path,
    )


def _unsupported_part(path: str, kind: str) -> BadRequest:
    return BadRequest(
        f"Unsupported value: '{path}' does not support '{kind}' with this model. Supported values are: 'text'.",
        code="unsupported_value",
        param=path,
    )


def _out_of_range(path: str, found: object, limits: dict[str, object], *, is_below: bool) -> BadRequest:
    bound = limits["ge"] if is_below else limits["le"]
    noun = "integer" if isinstance(bound, int) and not isinstance(bound, bool) else "decimal"
    if isinstance(bound, float) and bound.is_integer():
        bound = int(bound)
    side, sign = ("below minimum", ">=") if is_below else ("above maximum", "<=")
    return BadRequest(
        f"Invalid '{path}': {noun} {side} value. Expected a value {sign} {bound}, but got {found} instead.",
        code=f"{noun}_{'below_min' if is_below else 'above_max'}_value",
        param=path,
    )


def _too_long(path: str, found: object, limits: dict[str, object]) -> BadRequest:
    longest, length = limits["max_length"], limits.get("actual_length")
    if isinstance(found, dict):
        return BadRequest(
            f"Invalid '{path}': too many properties. Expected an object with at most {longest} properties, "
            f"but got an object with {length} properties instead.",
            code="object_above_max_properties",
            param=path,
        )
    return BadRequest(
        f"Invalid '{path}': array too long. Expected an array with maximum length {longest}, "
        f"but got an array with length {length} instead.",
        code="array_above_max_length",
        param=path,
    )
