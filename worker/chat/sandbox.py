"""Where chat templates run: Jinja's sandbox, with limits, for a template comes from whoever made the model.

Work is counted, not timed, so that a prompt is refused on every machine or on none: each round of a loop, each call of
a macro, and each stretch of text that is made. What makes much of little (repeating, joining, padding, powers) is
refused before it is made, where it would pass `SIZE_MAX`.
"""

import re
import threading
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Final

from jinja2 import TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

WORK_MAX: Final = 500_000
"""Rounds and calls, and stretches of text, in one rendering."""
SIZE_MAX: Final = 1 << 24
"""Characters of a text; an entry of a list counts as `_ENTRY` of them."""

_ENTRY: Final = 16

_STRETCH: Final = 64
"""Characters that cost as much as a round."""
_NUMBER_MAX: Final = 100_000  # of rounds in a range, by Jinja's own sandbox
_BITS_MAX: Final = 4096
_WIDTH: Final = re.compile(r"%(\([^)]*\))?[-+ #0-9.]*([0-9]{6}|\*)|\{[^{}]*:[^{}]*[0-9]{6}|\{[^{}]*\{")
"""A width in a format that is too wide, or that an argument tells."""
_WIDE: Final = re.compile(r"[0-9]{3}")
_REFUSED: Final = ("translate", "expandtabs")
_LOOKING: Final = (
    *("length", "count", "first", "last", "list", "map", "select", "reject", "selectattr", "rejectattr", "default"),
    *("d", "items", "batch", "slice", "reverse", "dictsort", "attr", "int", "float"),
)
"""Filters that do not tell what a list holds."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles and runs templates; `begin` comes before each rendering. Safe to use from several threads."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=_checked, **options)
        self.concat = self._joined  # type: ignore[method-assign]
        self.globals.pop("lipsum")  # text by chance
        self._work = threading.local()
        self.begin()

    def begin(self) -> None:
        """All work is allowed anew in this thread."""
        self._work.left = WORK_MAX

    def step(self, size: int = 0) -> None:
        """Count a round, and that it makes a text of this size."""
        _check(size)
        self._work.left = left = getattr(self._work, "left", WORK_MAX) - 1 - size // _STRETCH
        if left < 0:
            raise TemplateError("it takes more work than any honest template")

    @property
    def counted_round(self) -> None:
        """Count a round. A property: where a template reads it, nothing is called."""
        self.step()

    def joined_by_tilde(self, *values: Any) -> str:
        """What `~` makes of its operands."""
        return self._joined([str(_checked(value)) for value in values])

    def guard(self) -> None:
        """Put the limits around all filters, once all of them are there."""
        self.filters = {name: self._guarded(name, keep) for name, keep in self.filters.items()}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, if it comes to no more than the limits."""
        self.step(_size_of_operation(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, callee: Any, /, *arguments: Any, **named: Any) -> Any:
        """A call by a template, if it comes to no more than the limits."""
        method = getattr(callee, "__wrapped__", callee)
        owner = getattr(method, "__self__", None)
        _check_numbers((*arguments, *named.values()))
        if isinstance(owner, str):
            self.step(_size_of_method(getattr(method, "__name__", ""), owner, (*arguments, *named.values())))
        return super().call(context, callee, *arguments, **named)

    def _generate(self, source: nodes.Template, *arguments: Any, **named: Any) -> str:
        return super()._generate(_Counting().visit(source), *arguments, **named)

    def _joined(self, pieces: Iterable[str]) -> str:
        kept = []
        for piece in pieces:
            self.step(len(piece))
            kept.append(piece)
        _check(sum(map(len, kept)))
        return "".join(kept)

    def _guarded(self, name: str, keep: Callable[..., Any]) -> Callable[..., Any]:
        skipped = int(hasattr(keep, "jinja_pass_arg"))  # it is given the context or the environment first

        @wraps(keep)
        def guarded(*arguments: Any, **named: Any) -> Any:
            value, *others = arguments[skipped:]
            others += named.values()
            _check_numbers(others)
            self.step(_size_of_filter(name, value if name in _LOOKING else _checked(value), others))
            return keep(*arguments, **named)

        return guarded


class _Counting(NodeTransformer):
    """Counts what can be repeated, and has texts joined where we see it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (Jinja's names)
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("joined_by_tilde", node.nodes, node.lineno)

    def _counted(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("counted_round"), lineno=node.lineno))
        return node

    @staticmethod
    def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
        method = nodes.EnvironmentAttribute(name, lineno=line)
        return nodes.Call(method, arguments, [], None, None, lineno=line)


def _check(size: int) -> None:
    if size > SIZE_MAX:
        raise TemplateError(f"it makes a text of more than {SIZE_MAX:,} characters, or as long a list")


def _check_numbers(values: Iterable[Any]) -> None:
    """Widths, counts and indents."""
    if any(isinstance(value, int) and abs(value) > _NUMBER_MAX for value in values):
        raise TemplateError(f"it passes a number beyond {_NUMBER_MAX:,}")


def _checked(value: Any) -> Any:
    """The same; TemplateError for what would be long if told: a list in lists in lists, or long texts many times."""
    size, waiting = 0, [value] if isinstance(value, list | tuple | dict) else []
    while waiting:
        one = waiting.pop()
        size += _ENTRY
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, list | tuple | dict):
            _check(size + _length(one))
            waiting.extend((*one.keys(), *one.values()) if isinstance(one, dict) else one)
        _check(size)
    return value


def _length(value: Any) -> int:
    """What a value takes of SIZE_MAX."""
    if isinstance(value, str):
        return len(value)
    return _ENTRY * len(value) if isinstance(value, list | tuple | dict) else 24  # the longest of other things


def _longest(values: Iterable[Any]) -> int:
    return max(map(_length, values), default=0)


def _size_of_operation(operator: str, left: Any, right: Any) -> int:
    """What an operation makes, at most."""
    match operator, left, right:
        case "+", _, _:
            return _length(left) + _length(right)
        case "*", str() | list() | tuple(), int():
            return _length(left) * right
        case "*", int(), str() | list() | tuple():
            return left * _length(right)
        case "*" | "**", int(), int():
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * abs(right)
            return 0 if bits <= _BITS_MAX else SIZE_MAX + 1
        case "%", str(), _:
            return _size_of_format(left, "%", right if isinstance(right, tuple) else (right,))
        case _:
            return 0


def _size_of_format(form: str, sign: str, values: Iterable[Any]) -> int:
    if _WIDTH.search(form):
        return SIZE_MAX + 1
    inside = [one for value in values for one in (value.values() if isinstance(value, dict) else (value,))]
    width = _NUMBER_MAX if _WIDE.search(form) else 0
    return len(form) + form.count(sign) * (_longest(map(_checked, inside)) + width)


def _size_of_method(name: str, text: str, values: tuple[Any, ...]) -> int:
    """What a method of a text makes, at most."""
    match name:
        case "format" | "format_map":
            return _size_of_format(text, "{", values)
        case "replace" if len(values) > 1:
            return _size_of_replacing(text, values[0], values[1])
        case "join" if values:
            return _size_of_joining(values[0], text)
        case _ if name in _REFUSED:
            return SIZE_MAX + 1
        case _:
            return len(text)


def _size_of_filter(name: str, value: Any, others: list[Any]) -> int:
    """What a filter makes, at most."""
    match name:
        case "replace" if len(others) > 1:
            return _size_of_replacing(str(value), others[0], others[1])
        case "join":
            return _size_of_joining(value, others[0] if others else "")
        case "format":
            return _size_of_format(str(value), "%", others)
        case "indent" | "wordwrap":
            return _length(value) + (str(value).count("\n") + 1) * sum(map(_width, others))
        case _:
            return _length(value)


def _size_of_replacing(text: str, old: Any, new: Any) -> int:
    return len(text) + text.count(str(old)) * _length(new)


def _size_of_joining(values: Any, between: Any) -> int:
    if not isinstance(values, str | list | tuple | dict):
        return _NUMBER_MAX * _length(between)  # a generator, of who knows how many
    return sum(map(_length, values)) + len(values) * _length(between)


def _width(value: Any) -> int:
    return abs(value) if isinstance(value, int) else _length(value)
