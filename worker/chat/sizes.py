"""How large a template's values are, and what operations on them would make, at most: known before it is made.

Sizes are in characters; an entry of a list counts as `ENTRY` of them. A list that holds another twice is as large as
if it held two: whoever prints it, compares it or looks it up goes through it twice.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from jinja2 import TemplateError
from jinja2.utils import Namespace

SIZE_MAX: Final = 1 << 24
"""Of a text, or of all that a list holds."""
ENTRY: Final = 16
NUMBER_MAX: Final = 100_000
"""Of rounds in a range, by Jinja's own sandbox; of widths, counts and indents."""

_BITS_MAX: Final = 4096
_DIGITS_MAX: Final = 4096
_EXACT_MAX: Final = 300
_OTHER: Final = 24  # the longest number, written out
_VISIT: Final = 64  # what it takes to look at a value at all
_SHORT: Final = 64
_WIDTH: Final = re.compile(r"%(\([^)]*\))?[-+ #0-9.]*([0-9]{6}|\*)|\{[^{}]*:[^{}]*[0-9]{6}|\{[^{}]*\{")
"""A width in a format that is too wide, or that an argument tells."""
_WIDE: Final = re.compile(r"[0-9]{3}")
_REFUSED: Final = ("translate", "expandtabs", "encode", "to_bytes")

_VIEWS: Final[tuple[type, ...]] = (type({}.keys()), type({}.values()), type({}.items()))
_HOLDING: Final = (list, tuple, dict, Namespace, *_VIEWS)


def check(size: int) -> int:
    """The same. TemplateError for more than there may be."""
    if size > SIZE_MAX:
        raise TemplateError(f"it makes a text of more than {SIZE_MAX:,} characters, or as long a list")
    return size


def check_numbers(values: Iterable[Any]) -> None:
    """TemplateError for a width, a count or an indent that is too large."""
    if any(isinstance(value, int) and abs(value) > NUMBER_MAX for value in values):
        raise TemplateError(f"it passes a number beyond {NUMBER_MAX:,}")


def is_light(value: Any) -> bool:
    """Is it compared with anything in no time?"""
    return not isinstance(value, _HOLDING) and not (isinstance(value, str) and len(value) >= _SHORT)


def shallow(value: Any) -> int:
    """What a copy takes, of what a value holds only its places."""
    if isinstance(value, str):
        return len(value)
    return ENTRY * len(_held(value)) if isinstance(value, (*_HOLDING, range)) else _OTHER


def deep(value: Any) -> int:
    """What it takes to tell a value and all that it holds, or to look it up. TemplateError for more than SIZE_MAX."""
    if not isinstance(value, _HOLDING):
        return check(_VISIT + shallow(value))
    size = 0
    for part in _walk(value):
        size = check(size + part)
    return size


def all_of(values: Iterable[Any]) -> int:
    """What several values take."""
    return sum(map(deep, values))


def lesser(left: Any, right: Any) -> int:
    """What it takes to compare two values, at most: as much as the smaller of them has."""
    sizes, walks = [0, 0], [_walk(left), _walk(right)]
    while True:
        side = int(sizes[1] < sizes[0])
        part = next(walks[side], None)
        if part is None:
            return sizes[side]
        sizes[side] = check(sizes[side] + part)


def _walk(value: Any) -> Iterator[int]:
    """The sizes of a value and of all that it holds, each before what is in it."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        yield _VISIT + shallow(one)
        held = _held(one)
        waiting.extend((*held.keys(), *held.values()) if isinstance(held, dict) else held)


def _held(value: Any) -> Collection[Any]:
    """What a value holds; of a namespace, a dictionary."""
    if isinstance(value, Namespace):
        attributes: dict[str, Any] = value._Namespace__attrs  # noqa: SLF001 (no other way)
        return attributes
    return value if _is_many(value) else ()


def _is_many(value: Any) -> bool:
    return isinstance(value, (list, tuple, dict, range, *_VIEWS))


def of_operation(operator: str, left: Any, right: Any) -> int:
    """What `left operator right` makes."""
    match operator, left, right:
        case "%", str(), _:
            return _of_format(left, "%", right if isinstance(right, tuple) else (right,))
        case "*", str() | list() | tuple(), int():
            return shallow(left) * max(0, right)
        case "*", int(), str() | list() | tuple():
            return max(0, left) * shallow(right)
        case "*" | "**", int(), int():
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * abs(right)
            return 0 if bits <= _BITS_MAX else SIZE_MAX + 1
        case _, int() | float(), int() | float():
            return 0
        case "+", _, _:
            return shallow(left) + shallow(right)
        case _:
            return deep(left) + deep(right)


def of_method(name: str, owner: Any, values: tuple[Any, ...]) -> int:
    """What a method makes, or goes through."""
    match name, owner:
        case _ if name in _REFUSED:
            return SIZE_MAX + 1
        case "format" | "format_map", str():
            return _of_format(owner, "{", values)
        case "replace", str() if len(values) > 1:
            return _of_replacing(owner, values[0], values[1])
        case "join", str() if values:
            return _of_joining(values[0], owner)
        case _, str():
            return len(owner) + all_of(values)
        case _, list() | tuple():
            return deep(owner) + all_of(values)
        case "copy", dict():
            return shallow(owner)
        case _:
            return all_of(values)


def of_filter(name: str, value: Any, others: list[Any]) -> int:
    """What a filter that looks at all of a value makes."""
    match name:
        case "replace" if len(others) > 1:
            return _of_replacing(str(value), others[0], others[1])
        case "join":
            return _of_joining(value, others[0] if others else "")
        case "format":
            return _of_format(str(value), "%", others)
        case "indent" | "wordwrap":
            return shallow(value) + (str(value).count("\n") + 1) * sum(map(_width, others))
        case "int" if isinstance(value, str) and len(value) > _DIGITS_MAX:
            return SIZE_MAX + 1
        case "round" if not isinstance(value, int | float) or max(map(_width, others), default=0) > _EXACT_MAX:
            return SIZE_MAX + 1
        case "sum" if not all(is_light(other) for other in others):
            return SIZE_MAX + 1
        case _:
            return 0


def _of_format(form: str, sign: str, values: Iterable[Any]) -> int:
    if _WIDTH.search(form):
        return SIZE_MAX + 1
    inside = [one for value in values for one in (value.values() if isinstance(value, dict) else (value,))]
    width = NUMBER_MAX if _WIDE.search(form) else 0
    return len(form) + form.count(sign) * (max(map(deep, inside), default=0) + width)


def _of_replacing(text: str, old: Any, new: Any) -> int:
    return len(text) + text.count(str(old)) * deep(new)


def _of_joining(values: Any, between: Any) -> int:
    return deep(values) + (len(values) if isinstance(values, Collection) else 0) * deep(between)


def _width(value: Any) -> int:
    return abs(value) if isinstance(value, int) else shallow(value)
