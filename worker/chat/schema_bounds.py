"""What makes a small JSON schema endless work, for the grammar that is made of it or for the check of an answer."""

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Final
from urllib.parse import unquote

MULTIPLE_MAX: Final = 10_000
"""Multiples of a number are found by an automaton with a state for each remainder."""

OPTIONAL_PROPERTIES_MAX: Final = 2_000
"""Any of those that may be left out can come next: the time to compile them grows with their square."""

PATTERN_PROPERTIES_MAX: Final = 100
"""The patterns of names must exclude each other: the time to make sure grows with more than their cube."""

UNFOLDED_MAX: Final = 200_000
"""A validator may look at an answer as often as there are parts, counted anew wherever a `$ref` repeats them."""


def fault_of(schema: dict[str, object]) -> str | None:
    """Why not to begin with it. RecursionError if it is nested too deeply to tell."""
    try:
        if sum(map(_optional_properties, _objects(schema))) > OPTIONAL_PROPERTIES_MAX:
            return f"more than {OPTIONAL_PROPERTIES_MAX} properties in it are not 'required'."
        if sum(map(_pattern_properties, _objects(schema))) > PATTERN_PROPERTIES_MAX:
            return f"'patternProperties' has more than {PATTERN_PROPERTIES_MAX} patterns in this schema."
        if _least_common_multiple(schema) > MULTIPLE_MAX:
            return f"'multipleOf' has a least common multiple of more than {MULTIPLE_MAX} in this schema."
        if _Unfolding(schema).size > UNFOLDED_MAX:
            return f"with each '$ref' written out, it has more than {UNFOLDED_MAX} parts."
    except LookupError as error:
        return f"{error.args[0]}."
    return None


def _optional_properties(part: dict[str, object]) -> int:
    properties, required = part.get("properties"), part.get("required")
    if not isinstance(properties, dict):
        return 0
    known = required if isinstance(required, list) else []
    return len(properties.keys() - {name for name in known if isinstance(name, str)})


def _pattern_properties(part: dict[str, object]) -> int:
    patterns = part.get("patternProperties")
    return len(patterns) if isinstance(patterns, dict) else 0


def _least_common_multiple(schema: dict[str, object]) -> int:
    """Of all at once, for `allOf` combines them: counted in units of the finest decimal."""
    fractions = [Decimal(str(number)).as_integer_ratio() for number in _multiples(schema)]
    unit = math.lcm(*(below for _, below in fractions))
    return math.lcm(*(above * unit // below for above, below in fractions))


def _multiples(schema: dict[str, object]) -> Iterator[int | float]:
    for part in _objects(schema):
        found = part.get("multipleOf")
        if isinstance(found, int | float) and math.isfinite(found) and found != 0:
            yield abs(found)


def _objects(value: object) -> Iterator[dict[str, object]]:
    """All of JSON's objects in a value."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


class _Unfolding:
    """Counts the parts of a schema. LookupError for a `$ref` that leads nowhere, or out of the schema."""

    def __init__(self, schema: dict[str, object]) -> None:
        self._root = schema
        self._sizes: dict[str, int] = {}
        self.size = self._size_of({name: part for name, part in schema.items() if name not in ("$defs", "definitions")})

    def _size_of(self, part: object) -> int:
        if isinstance(part, list):
            return sum(map(self._size_of, part))
        if not isinstance(part, dict):
            return 0
        reference = part.get("$ref")
        repeated = self._size_behind(reference) if isinstance(reference, str) else 0
        return 1 + repeated + sum(map(self._size_of, part.values()))

    def _size_behind(self, reference: str) -> int:
        if reference not in self._sizes:
            self._sizes[reference] = 1  # inside itself: validators notice that they were there
            self._sizes[reference] = self._size_of(self._behind(reference))
        return self._sizes[reference]

    def _behind(self, reference: str) -> object:
        """By RFC 6901."""
        if reference != "#" and not reference.startswith("#/"):
            raise LookupError(f"'$ref' is '{reference[:80]}', expected a path that begins with '#/'")
        part: object = self._root
        for step in unquote(reference).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(part, dict) and name in part:
                part = part[name]
            elif isinstance(part, list) and name.isdecimal() and int(name) < len(part):
                part = part[int(name)]
            else:
                raise LookupError(f"'$ref' is '{reference[:80]}', which is not there")
        return part
