"""What an answer must look like, as a text that llguidance reads: made of a schema, a pattern, a list, or Lark.

llguidance bounds the work of most grammars itself (`worker.chat.grammar`); what it would build without any bound is
refused here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import orjson
from llguidance import LLMatcher

from jobs.errors import BadRequest

# A model may otherwise write blanks up to the end of its context.
_OPTIONS: Final = {
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,8}",
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}
_MULTIPLE_MAX: Final = 10_000
"""Numbers that are multiples of another are found by an automaton with a state for each remainder."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a body a grammar stands, for the words of its refusal."""

    what: str
    """As `schema for response_format 'cat'`."""
    code: str
    param: str

    def refusal(self, reason: str) -> BadRequest:
        return BadRequest(f"Invalid {self.what}: {reason}", code=self.code, param=self.param)


def of_json_schema(schema: dict[str, object], place: Place) -> str:
    """BadRequest for a schema that cannot be made one; most faults are found when it is compiled."""
    try:
        return LLMatcher.grammar_from_json_schema(_text(schema, place))
    except ValueError as error:  # nested too deeply
        raise place.refusal(f"{error}.") from None


def json_rule(schema: dict[str, object], place: Place, *, is_strict: bool) -> str:
    """The right side of a rule, for a grammar in Lark of which the schema is a part. Where it is not strict, what
    the grammar cannot hold is let go.
    """
    return f"%json {_text(schema, place, is_strict=is_strict)}"


def of_regex(pattern: str) -> str:
    """The whole answer matches, in the syntax of Rust's `regex`, without look-around and back-references."""
    return LLMatcher.grammar_from_regex(pattern)


def of_choice(choices: Sequence[str]) -> str:
    return LLMatcher.grammar_from_lark("start: " + " | ".join(orjson.dumps(choice).decode() for choice in choices))


def of_lark(text: str, place: Place) -> str:
    """A user's own grammar. A schema inside it would come past our checks."""
    if "%json" in text:
        raise place.refusal("'%json' is not supported in a grammar.")
    return LLMatcher.grammar_from_lark(text)


def _text(schema: dict[str, object], place: Place, *, is_strict: bool = True) -> str:
    """With our options for llguidance, whatever stands there for it."""
    try:
        _refuse_many_remainders(schema, place)
        return orjson.dumps(schema | {"x-guidance": _OPTIONS | {"lenient": not is_strict}}).decode()
    except (RecursionError, orjson.JSONEncodeError):
        raise place.refusal("the schema is nested too deeply.") from None


def _refuse_many_remainders(schema: dict[str, object], place: Place) -> None:
    """All of them at once, for `allOf` combines them: counted in units of the finest decimal."""
    fractions = [Decimal(str(number)).as_integer_ratio() for number in _multiples(schema)]
    unit = math.lcm(*(below for _, below in fractions))
    if math.lcm(*(above * unit // below for above, below in fractions)) > _MULTIPLE_MAX:
        raise place.refusal(f"'multipleOf' has a least common multiple of more than {_MULTIPLE_MAX} in this schema.")


def _multiples(value: object) -> Iterator[int | float]:
    if isinstance(value, dict):
        found = value.get("multipleOf")
        if isinstance(found, int | float) and math.isfinite(found) and found != 0:
            yield abs(found)
        for inner in value.values():
            yield from _multiples(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _multiples(inner)
