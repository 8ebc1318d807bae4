"""What an answer must look like, as a text that llguidance reads: made of a schema, a pattern, a list, or Lark.

Knows nothing of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from llguidance import LLMatcher, regex_to_lark

from jobs.errors import BadRequest
from worker.chat import schema_bounds

# A model may otherwise write blanks up to the end of its context.
_OPTIONS: Final = {
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,8}",
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}


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
    """The whole answer matches: the syntax of Rust's `regex` without look-around; as in JSON schemas, `\\d` and `\\w`
    mean ASCII.
    """
    return LLMatcher.grammar_from_regex(regex_to_lark(pattern, "dw"))


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
        if (fault := schema_bounds.fault_of(schema)) is not None:
            raise place.refusal(fault)
        return orjson.dumps(schema | {"x-guidance": _OPTIONS | {"lenient": not is_strict}}).decode()
    except (RecursionError, orjson.JSONEncodeError):
        raise place.refusal("the schema is nested too deeply.") from None
