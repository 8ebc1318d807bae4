"""A call of a function, read from what a model wrote."""

import json
from dataclasses import dataclass
from typing import Final, NoReturn

BLANKS: Final = " \t\n\r\v\f"
"""Only these are cut around calls: what was published of a text can be told from its bytes."""


class Malformed(ValueError):
    """A text that begins like a call and is none."""


@dataclass(frozen=True, slots=True)
class Call:
    """A function's name and its arguments, the text of a JSON object."""

    name: str
    arguments: str


def of_object(found: object) -> Call:
    """`{"name": ..., "arguments": {...}}`, or `parameters`, as Llama says. Raises Malformed."""
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise Malformed("a call is an object with a name")
    arguments = found.get("arguments", found.get("parameters"))
    if not isinstance(arguments, dict):
        raise Malformed("arguments are an object")
    return Call(found["name"], written(arguments))


def written(arguments: object) -> str:
    """A value as JSON. Raises Malformed for half a surrogate pair, which cannot be sent."""
    try:
        text = json.dumps(arguments, ensure_ascii=False)
        text.encode()
    except (ValueError, RecursionError) as error:
        raise Malformed("no text") from error
    return text


def read_json(text: str, start: int) -> tuple[object, int]:
    """The JSON value that begins at `start`, after blanks, and where it ends. Raises Malformed."""
    try:
        value, end = _DECODER.raw_decode(text, after_blanks(text, start))
    except (ValueError, RecursionError) as error:
        raise Malformed("no JSON") from error
    return value, end


def after_blanks(text: str, start: int) -> int:
    """Where the next sign stands that is no blank."""
    while start < len(text) and text[start] in BLANKS:
        start += 1
    return start


def joined(before: str, after: str) -> str:
    """What was said around calls; `before` keeps its beginning, for it may have been published."""
    kept, said = before.rstrip(BLANKS), after.strip(BLANKS)
    return f"{kept}\n{said}" if kept and said else kept or said


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is no JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
