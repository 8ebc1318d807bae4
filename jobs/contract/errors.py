"""The error envelope of the wire, and the translation of faults in what was sent into OpenAI's words."""

import difflib
import re
from collections.abc import Callable, Collection

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from jobs.contract.variants import listed
from jobs.errors import BadRequest, Refusal

RULES = {  # between parameters; told without a code
    "needs_tools": "Invalid value for '{path}': '{path}' is only allowed when 'tools' are specified.",
    "absent_tool": "Invalid value for '{path}': no {sort} named '{tool}' was specified in the 'tools' parameter.",
    "absent_function": "Invalid value for '{path}': no function named '{function}' was specified in 'functions'.",
    "tools_and_functions": "Invalid value for '{path}': '{path}' is not allowed when 'functions' are specified.",
    "no_token_id": "Invalid key in '{path}': {key}. You should only be submitting non-negative integers.",
    "min_above_max": "Invalid '{path}': {found} is more than the longest answer asked for, which is {most} tokens.",
    "two_structures": "Invalid value for '{path}': '{path}' is not allowed with 'response_format' of type '{form}'.",
    "not_one_structure": "Invalid value for '{path}': expected exactly one of 'json', 'regex', 'choice' and 'grammar'.",
    "needs_logprobs": "The '{path}' parameter is only allowed when 'logprobs' is enabled.",
}
KEY_CHARACTERS_MAX = 100  # of one that may be misspelt; to compare megabytes takes seconds
OF_OBJECTS = frozenset({"messages", "tools", "functions"})
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


def refusal_of(error: ValidationError, *, known: Collection[str] = ()) -> BadRequest:
    """The one fault that OpenAI would report: what is missing first, then unknown keys, then the others.

    Pydantic lists faults in the order of the fields, which follow OpenAI's order of checks. `known` are the
    keys among which a misspelt one may be meant.
    """
    fault = min(error.errors(include_url=False), key=_rank)
    if fault["type"] == "extra_forbidden":
        return _unknown(path_of(fault["loc"]), known if len(fault["loc"]) == 1 else ())
    return describe(fault)


def describe(fault: ErrorDetails) -> BadRequest:
    """One of pydantic's faults in OpenAI's words, with its code and the path of the parameter."""
    path, kind = path_of(fault["loc"]), fault["type"]
    if (words := RULES.get(kind)) is not None:
        return BadRequest(words.format(path=path, **fault.get("ctx", {})), param=path)
    if (tell := TELLERS.get(kind)) is not None:
        return tell(fault, path)
    return _wrong_type(path, fault["input"], _expected(path, kind))


def path_of(location: tuple[int | str, ...]) -> str:
    """`('messages', 0, 'role')` as `messages[0].role`."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step.startswith("<") or step == "[key]":
            continue  # which of several types was meant; that the key is at fault, and not its value
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


def _rank(fault: ErrorDetails) -> int:
    """Only the keys of the body itself go first; what is inside them has its turn with them."""
    if len(fault["loc"]) > 1:
        return 2
    return {"missing": 0, "extra_forbidden": 1}.get(fault["type"], 2)


def _missing(path: str) -> BadRequest:
    if path == "model":
        return BadRequest("you must provide a model parameter")
    return BadRequest(f"Missing required parameter: '{path}'.", code="missing_required_parameter", param=path)


def _unknown(path: str, known: Collection[str]) -> BadRequest:
    near = difflib.get_close_matches(path, known, n=1) if len(path) <= KEY_CHARACTERS_MAX else ()
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return BadRequest(f"Unknown parameter: '{path}'.{hint}", code="unknown_parameter", param=path)


def _expected(path: str, kind: str) -> str:
    if kind == "list_type" and path in OF_OBJECTS:
        return "an array of objects"
    return TYPE_NAMES.get(kind, "a different type")


def _wrong_type(path: str, found: object, expected: str) -> BadRequest:
    return BadRequest(
        f"Invalid type for '{path}': expected {expected}, but got {type_name(found)} instead.",
        code="invalid_type",
        param=path,
    )


def _null_content(_: ErrorDetails, path: str) -> BadRequest:
    place = path.replace("[", ".[")  # as OpenAI spells it, here and nowhere else
    return BadRequest("Invalid value for 'content': expected a string, got null.", param=f"{place}.content")


def _out_of_range(fault: ErrorDetails, path: str) -> BadRequest:
    is_below = fault["type"] == "greater_than_equal"
    bound: object = fault["ctx"]["ge" if is_below else "le"]
    noun = "integer" if isinstance(bound, int) and not isinstance(bound, bool) else "decimal"
    if isinstance(bound, float) and bound.is_integer():
        bound = int(bound)
    side, sign = ("below minimum", ">=") if is_below else ("above maximum", "<=")
    return BadRequest(
        f"Invalid '{path}': {noun} {side} value. Expected a value {sign} {bound}, but got {fault['input']} instead.",
        code=f"{noun}_{'below_min' if is_below else 'above_max'}_value",
        param=path,
    )


def _too_long(fault: ErrorDetails, path: str) -> BadRequest:
    longest, found = fault["ctx"]["max_length"], fault["input"]
    if isinstance(found, dict):
        return BadRequest(
            f"Invalid '{path}': too many properties. Expected an object with at most {longest} properties, "
            f"but got an object with {len(found)} properties instead.",
            code="object_above_max_properties",
            param=path,
        )
    return BadRequest(
        f"Invalid '{path}': array too long. Expected an array with maximum length {longest}, "
        f"but got an array with length {len(found)} instead.",
        code="array_above_max_length",
        param=path,
    )


def _too_long_text(fault: ErrorDetails, path: str) -> BadRequest:
    longest, length = fault["ctx"]["max_length"], len(fault["input"])
    if fault["loc"][-1] == "[key]":
        place = path_of(fault["loc"][:-2])
        return BadRequest(
            f"Invalid '{place}': property name too long. Expected a property name with maximum length {longest}, "
            f"but got a property name with length {length} instead.",
            code="property_name_above_max_length",
            param=place,
        )
    return BadRequest(
        f"Invalid '{path}': string too long. Expected a string with maximum length {longest}, "
        f"but got a string with length {length} instead.",
        code="string_above_max_length",
        param=path,
    )


def _empty(fault: ErrorDetails, path: str) -> BadRequest:
    article, noun = ("an", "array") if fault["type"] == "too_short" else ("a", "string")
    return BadRequest(
        f"Invalid '{path}': empty {noun}. Expected {article} {noun} with minimum length 1, "
        f"but got an empty {noun} instead.",
        code=f"empty_{noun}",
        param=path,
    )


def _other_pattern(fault: ErrorDetails, path: str) -> BadRequest:
    return BadRequest(
        f"Invalid '{path}': string does not match pattern. Expected a string that matches the pattern "
        f"'{fault['ctx']['pattern']}'.",
        code="invalid_value",
        param=path,
    )


def _not_strict(fault: ErrorDetails, path: str) -> BadRequest:
    return BadRequest(
        f"Invalid schema for response_format '{fault['ctx']['name']}': {fault['ctx']['fault']}",
        code="invalid_json_schema",
        param=path.split(".")[0],
    )


def _not_among(fault: ErrorDetails, path: str) -> BadRequest:
    """Pydantic lists what was expected as `'a', 'b' or 'c'`."""
    found = fault["input"]
    supported = listed(tuple(name.strip("'") for name in re.split(r", | or ", fault["ctx"]["expected"])))
    if not isinstance(found, str):
        return _wrong_type(path, found, f"one of {supported}")
    return BadRequest(f"Invalid value: '{found}'. Supported values are: {supported}.", code="invalid_value", param=path)


def _no_such_type(fault: ErrorDetails, path: str) -> BadRequest:
    """An object whose `type` is none of those it may be, which the fault's own message lists."""
    found, supported = fault["input"], fault["msg"]
    if not isinstance(found, dict):
        return _wrong_type(path, found, "an object")
    if "type" not in found:
        return _missing(f"{path}.type")
    if not isinstance(found["type"], str):
        return _wrong_type(f"{path}.type", found["type"], f"one of {supported}")
    return BadRequest(
        f"Invalid value: '{found['type']}'. Supported values are: {supported}.",
        code="invalid_value",
        param=f"{path}.type",
    )


TELLERS: dict[str, Callable[[ErrorDetails, str], BadRequest]] = {
    "missing": lambda _, path: _missing(path),
    "missing_in_message": lambda fault, path: _missing(f"{path}.{fault['ctx']['field']}"),
    "null_content": _null_content,
    "extra_forbidden": lambda _, path: _unknown(path, ()),
    "greater_than_equal": _out_of_range,
    "less_than_equal": _out_of_range,
    "too_long": _too_long,
    "too_short": _empty,
    "string_too_long": _too_long_text,
    "string_too_short": _empty,
    "string_pattern_mismatch": _other_pattern,
    "literal_error": _not_among,
    "enum": _not_among,
    "not_strict": _not_strict,
    "variant": _no_such_type,
    "neither": lambda fault, path: _wrong_type(path, fault["input"], fault["msg"]),
    "value_error": lambda fault, path: BadRequest(str(fault["ctx"]["error"]), code="invalid_value", param=path),
}
