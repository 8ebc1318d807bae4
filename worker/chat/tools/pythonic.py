"""Calls written as Python: Llama 4, and models tuned as ToolACE was."""

import json
import re
from collections.abc import Sequence
from typing import Final

from jobs.contract.tools import Function
from worker.chat.tools import calls, lark
from worker.chat.tools.calls import Call, Malformed

OPEN: Final = "<|python_start|>"
CLOSE: Final = "<|python_end|>"

_SIGN: Final = re.compile(
    r"""[ \t\n\r\v\f]*(?:
      (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.]))
    | (?P<word>[A-Za-z_][\w-]*)
    | (?P<sign>[][(){},=:])
    )""",
    re.DOTALL | re.VERBOSE | re.ASCII,
)
_ESCAPED: Final = re.compile(r'\\.|"', re.DOTALL)
_CONSTANTS: Final = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


class Pythonic:
    """`[f(a="x", b=1), g()]`, between marks or without them; values are written as in Python or in JSON."""

    marks = (OPEN, CLOSE)
    openings = (OPEN, "[")
    only_first = True

    def instructions(self, tools: Sequence[dict[str, object]]) -> str:
        listed = json.dumps([tool["function"] for tool in tools], indent=4, ensure_ascii=False)
        return (
            "Here is a list of functions in JSON format that you can invoke. If you decide to invoke any of them, put "
            "it in the format of [func_name1(params_name1=params_value1, params_name2=params_value2...), "
            f"func_name2(params)]. Do not include any other text in the response.\n\n{listed}"
        )

    def grammar(self, functions: Sequence[Function], mark: lark.Mark, *, is_parallel: bool) -> str:  # noqa: ARG002
        more = ' (", " call)*' if is_parallel else ""
        names = " | ".join(f"call{place}" for place in range(len(functions)))
        rules = [f'start: "[" call{more} "]"', f"call: {names}"]
        for place, function in enumerate(functions):
            rules += _call_rules(f"call{place}", function)
        return "\n".join(rules)

    def parse(self, text: str) -> tuple[str, list[Call]]:
        inside = text.strip(calls.BLANKS)
        if not inside.startswith(self.openings):
            return text, []
        try:
            found = _Reader(inside.removeprefix(OPEN).removesuffix(CLOSE)).calls()
        except RecursionError as error:
            raise Malformed("too deep") from error
        return "", found

    def spell(self, made: Sequence[Call]) -> str:
        return "[" + ", ".join(f"{call.name}({_keywords(call.arguments)})" for call in made) + "]"


def _keywords(arguments: str) -> str:
    """What somebody says that the model wrote may be no object; then it is told as it is."""
    try:
        found = json.loads(arguments)
        return ", ".join(f"{name}={calls.written(value)}" for name, value in found.items())
    except (ValueError, AttributeError, RecursionError):
        return arguments


def _call_rules(rule: str, function: Function) -> list[str]:
    """Arguments in the order of the schema, those that are not required left out or not.

    Rule `_first<i>` writes the i-th argument and what follows it where none stands before, `_more<i>` where one
    does, and so begins with a comma.
    """
    schema = lark.schema_of(function)
    properties, required = schema.get("properties"), schema.get("required")
    fields = list(properties.items()) if isinstance(properties, dict) else []
    needed = frozenset(required) if isinstance(required, list) else frozenset()
    shared: dict[str, object] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    rules = [f'{rule}: {lark.literal(function.name + "(")} {rule}_first0 ")"']
    for place, (name, field) in enumerate(fields):
        value = lark.json_of({**shared, **field} if isinstance(field, dict) else shared, function)
        following = f"{rule}_value{place} {rule}_more{place + 1}"
        for kind, comma in (("first", ""), ("more", ", ")):
            left_out = "" if name in needed else f" | {rule}_{kind}{place + 1}"
            rules.append(f"{rule}_{kind}{place}: {lark.literal(f'{comma}{name}=')} {following}{left_out}")
        rules.append(f"{rule}_value{place}: {value}")
    return [*rules, f'{rule}_first{len(fields)}: ""', f'{rule}_more{len(fields)}: ""']


class _Reader:
    """Reads a list of calls, sign by sign. Raises Malformed."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._kind, self._sign = "", ""
        self._advance()

    def calls(self) -> list[Call]:
        """All of the text."""
        found = list[Call]()
        self._take("[")
        while not found or self._took(","):
            found.append(self._call())
        self._take("]")
        if self._kind:
            raise Malformed("more than calls")
        return found

    def _call(self) -> Call:
        name, arguments = self._name(), dict[str, object]()
        self._take("(")
        while not self._took(")"):
            if arguments:
                self._take(",")
            key = self._name()
            self._take("=")
            arguments[key] = self._value()
        return Call(name, calls.written(arguments))

    def _value(self) -> object:
        match self._kind, self._sign:
            case "text", _:
                return _text(self._next())
            case "number", _:
                return _number(self._next())
            case "word", word if word in _CONSTANTS:
                return _CONSTANTS[self._next()]
            case _, "[" | "(":
                return self._list()
            case _, "{":
                return self._object()
        raise Malformed("no value")

    def _list(self) -> list[object]:
        closing, values = {"[": "]", "(": ")"}[self._next()], list[object]()
        while not self._took(closing):
            if values:
                self._take(",")
                if self._took(closing):
                    break
            values.append(self._value())
        return values

    def _object(self) -> dict[str, object]:
        self._take("{")
        values = dict[str, object]()
        while not self._took("}"):
            if values:
                self._take(",")
            key = self._value()
            if not isinstance(key, str):
                raise Malformed("keys are texts")
            self._take(":")
            values[key] = self._value()
        return values

    def _name(self) -> str:
        if self._kind != "word":
            raise Malformed("no name")
        return self._next()

    def _take(self, sign: str) -> None:
        if not self._took(sign):
            raise Malformed(f"no {sign}")

    def _took(self, sign: str) -> bool:
        is_there = self._kind == "sign" and self._sign == sign
        if is_there:
            self._advance()
        return is_there

    def _next(self) -> str:
        sign = self._sign
        self._advance()
        return sign

    def _advance(self) -> None:
        """The kind is "" at the end."""
        found = _SIGN.match(self._text, self._place)
        if found is not None:
            self._place, self._kind, self._sign = found.end(), str(found.lastgroup), found[str(found.lastgroup)]
        elif calls.after_blanks(self._text, self._place) == len(self._text):
            self._kind, self._sign = "", ""
        else:
            raise Malformed("no Python")


def _number(written: str) -> object:
    """As JSON has numbers."""
    value, end = calls.read_json(written, 0)
    if end < len(written):
        raise Malformed("no number")
    return value


def _text(quoted: str) -> str:
    """A text in either kind of quotes, read as JSON."""
    inner = _ESCAPED.sub(lambda found: {"\\'": "'", '"': '\\"'}.get(found[0], found[0]), quoted[1:-1])
    try:
        return str(json.loads(f'"{inner}"', strict=False))
    except ValueError as error:
        raise Malformed("no text") from error
