"""A model's chat template: messages to one text, as Hugging Face renders it. Knows nothing of tokens."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context

from jobs.errors import BadRequest
from worker.chat.sandbox import Sandbox

# What the sandbox and a template's own arithmetic raise when the messages are not what it expects.
_FAULTS: Final = (
    *(TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError),
)
_FAULT_CHARACTERS_MAX: Final = 1000


class Generation(Extension):
    """`{% generation %}` marks what to train on; a prompt is the same without it."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Template:
    """One template, compiled; safe to use from several threads. Raises TemplateError if it is not Jinja."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        self._sandbox = environment = Sandbox(extensions=["jinja2.ext.loopcontrols", Generation])
        environment.filters["tojson"] = self._tojson
        environment.guard()
        environment.globals["raise_exception"] = _raise_exception
        self._compiled = environment.from_string(source)
        named = meta.find_undeclared_variables(environment.parse(source))
        self.variables = frozenset(named - environment.globals.keys())
        """What it reads of what it is given."""
        self._constants = {
            **environment.globals,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            "bos_token": bos_token,
            "eos_token": eos_token,
        }

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        now: datetime,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The text of a prompt, up to where the answer begins. BadRequest if the template refuses.

        The only clock a template sees stands still at `now`, so that a line is asked the same whenever it
        runs. `variables` are more of what it reads.
        """
        given = {"messages": messages, "tools": tools, "strftime_now": now.strftime}
        said = {**self._constants, **(variables or {}), **given}
        try:
            # As `render` does it, which copies a chain of mappings for every prompt.
            self._sandbox.begin()
            context = Context(self._sandbox, said, self._compiled.name, self._compiled.blocks)
            return self._sandbox.concat(self._compiled.root_render_func(context))
        except _FAULTS as error:
            raise BadRequest(
                f"The model's chat template cannot render these messages: {str(error)[:_FAULT_CHARACTERS_MAX]}",
                code="invalid_value",
                param="messages",
            ) from error

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Jinja's own escapes signs for HTML, which models were not trained on. Where there is an indent, a piece at a
        time, for it can make much of little.
        """
        style = {"ensure_ascii": ensure_ascii, "separators": separators, "sort_keys": sort_keys}
        if indent is None and separators is None:
            return json.dumps(value, **style)  # type: ignore[arg-type]
        return self._sandbox.joined(json.JSONEncoder(indent=indent, **style).iterencode(value))  # type: ignore[arg-type]


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
