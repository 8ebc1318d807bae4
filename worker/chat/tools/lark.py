"""Parts of a Lark grammar, in llguidance's dialect, that the families' calls are made of."""

import json
from collections.abc import Callable, Sequence
from typing import Final

from jobs.contract.tools import Function
from worker.chat.grammar import Grammar, Grammars
from worker.chat.grammar_text import Place, json_rule

Mark = Callable[[str], str]
"""How a grammar writes a mark of the family's: a literal, or a control token by its id."""

_PLACE: Final = Place("schema for a function in 'tools'", code="invalid_function_parameters", param="tools")


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def json_of(schema: dict[str, object], function: Function) -> str:
    """The right side of a rule: a value of a schema that is the function's, or a part of it."""
    return json_rule(schema, _PLACE, is_strict=function.strict is True)


def objects(functions: Sequence[Function], *, key: str) -> str:
    """The rule `object`: one call of one of the functions, whose arguments are called `key`."""
    names = " | ".join(f"object{place}" for place in range(len(functions)))
    rules = [f"object: {names}"]
    for place, function in enumerate(functions):
        beginning = literal(f'{{"name": "{function.name}", "{key}": ')
        rules.append(f'object{place}: {beginning} arguments{place} "}}"')
        rules.append(f"arguments{place}: {json_of(schema_of(function), function)}")
    return "\n".join(rules)


def schema_of(function: Function) -> dict[str, object]:
    """The arguments' schema; a function without one takes none."""
    if not function.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **function.parameters}


def compiled(text: str, grammars: Grammars) -> Grammar:
    """BadRequest for a function's schema that cannot be held."""
    return grammars.compile(text, _PLACE)
