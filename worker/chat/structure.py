"""What a body asks its answer to look like: a grammar while it is written, and another judge of it when it is done."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import jsonschema_rs
import orjson

from jobs.contract.chat import ChatCompletion
from jobs.contract.formats import JsonObjectFormat, JsonSchemaFormat, StructuredOutputs
from jobs.errors import Failed
from worker.chat import grammar_text
from worker.chat.grammar import Grammar, Grammars
from worker.chat.grammar_text import Place

Judge = Callable[[str], str | None]
"""What is wrong with a text."""

_OBJECT: Final[dict[str, object]] = {"type": "object"}
_JUDGES_KEPT: Final = 64
_REASON_CHARACTERS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Structure:
    """What every choice of one line must look like."""

    grammar: Grammar
    param: str
    judge: Judge

    def check(self, text: str) -> None:
        """Missed, for a finished text that is not what was asked for."""
        if (problem := self.judge(text)) is not None:
            raise Missed(self.param, problem)


class Missed(Failed):
    """An answer came to its end, and is not what was asked for."""

    def __init__(self, param: str, problem: str) -> None:
        super().__init__(
            f"The model's answer is not what '{param}' asks for: {problem[:_REASON_CHARACTERS_MAX]}",
            code="invalid_structured_output",
            param=param,
        )


def asked_for(wanted: ChatCompletion, grammars: Grammars) -> Structure | None:
    """None where any text will do. BadRequest for what cannot be served, with the name of the keyword."""
    if wanted.structured_outputs is not None:
        return _extension(wanted.structured_outputs, grammars)
    match wanted.response_format:
        case JsonObjectFormat():
            return _of_schema(_OBJECT, grammars, Place("response_format", "invalid_value", "response_format"))
        case JsonSchemaFormat(json_schema=asked):
            what = f"schema for response_format '{asked.name}'"
            return _of_schema(asked.schema_, grammars, Place(what, "invalid_json_schema", "response_format"))
    return None


def _extension(asked: StructuredOutputs, grammars: Grammars) -> Structure:
    def place(name: str, code: str = "invalid_value") -> Place:
        return Place(f"'structured_outputs.{name}'", code, f"structured_outputs.{name}")

    if asked.json_ is not None:
        return _of_schema(asked.json_, grammars, place("json", "invalid_json_schema"))
    if asked.regex is not None:
        return _of_regex(asked.regex, grammars, place("regex"))
    if asked.choice is not None:
        return _of_choice(asked.choice, grammars, place("choice"))
    assert asked.grammar is not None, "the contract asks for exactly one"
    return _of_lark(asked.grammar, grammars, place("grammar"))


def _of_schema(schema: dict[str, object], grammars: Grammars, place: Place) -> Structure:
    grammar = grammars.compile(grammar_text.of_json_schema(schema, place), place)
    try:
        validator = _validator(orjson.dumps(schema))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise place.refusal(str(error).splitlines()[0]) from None
    return Structure(grammar, place.param, lambda text: _problem_of_json(text, validator))


def _of_regex(pattern: str, grammars: Grammars, place: Place) -> Structure:
    grammar = grammars.compile(grammar_text.of_regex(pattern), place)
    try:
        whole = _validator(orjson.dumps({"type": "string", "pattern": f"^(?:{pattern})$"}))
    except jsonschema_rs.ValidationError:
        raise place.refusal("the pattern cannot be read.") from None
    return Structure(grammar, place.param, lambda text: None if whole.is_valid(text) else "it does not match.")


def _of_choice(choices: list[str], grammars: Grammars, place: Place) -> Structure:
    grammar = grammars.compile(grammar_text.of_choice(choices), place)
    return Structure(grammar, place.param, lambda text: None if text in choices else "it is none of them.")


def _of_lark(text: str, grammars: Grammars, place: Place) -> Structure:
    """Nothing but llguidance reads its Lark, so there is nobody else to ask."""
    return Structure(grammars.compile(grammar_text.of_lark(text, place), place), place.param, lambda _: None)


@lru_cache(_JUDGES_KEPT)
def _validator(schema: bytes) -> jsonschema_rs.Validator:
    """Patterns in an engine whose time grows with the text alone; nothing is fetched."""
    return jsonschema_rs.validator_for(
        orjson.loads(schema), validate_formats=True, offline=True, pattern_options=jsonschema_rs.RegexOptions()
    )


def _problem_of_json(text: str, validator: jsonschema_rs.Validator) -> str | None:
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"
    fault = next(validator.iter_errors(found), None)
    return None if fault is None else str(fault.message)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
