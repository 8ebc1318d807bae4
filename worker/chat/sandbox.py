"""Where chat templates run: Jinja's sandbox, with limits, for a template comes from whoever made the model.

Work is counted, not timed, so that a prompt is refused on every machine or on none: each round of a loop, each call,
and each stretch of text or list that is made, told, compared or looked up. What would pass `sizes.SIZE_MAX` is
refused before it is made.
"""

import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, Final

from jinja2 import TemplateError, nodes
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from worker.chat import sizes

WORK_MAX: Final = 500_000
"""Rounds and calls, and stretches of text, in one rendering."""

_STRETCH: Final = 64
"""Characters that cost as much as a round."""
_LOOKING: Final = (
    *("length", "count", "first", "last", "list", "map", "select", "reject", "selectattr", "rejectattr", "default"),
    *("d", "items", "batch", "slice", "reverse", "attr", "float"),
)
"""Filters that do not tell what a list holds."""
_ENDLESS: Final = ("striptags", "urlize", "pprint")
"""Filters that take far longer for twice as much; they are for web pages."""
_KEY: Final = "a key that is counted"
_CUT: Final = "a cut that is counted"

_ORDERS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    **dict.fromkeys(("eq", "==", "equalto"), operator.eq),
    **dict.fromkeys(("ne", "!="), operator.ne),
    **dict.fromkeys(("lt", "<", "lessthan"), operator.lt),
    **dict.fromkeys(("le", "<="), operator.le),
    **dict.fromkeys(("gt", ">", "greaterthan"), operator.gt),
    **dict.fromkeys(("ge", ">="), operator.ge),
}
_TEST_OF: Final = {"eq": "eq", "ne": "ne", "lt": "lt", "lteq": "le", "gt": "gt", "gteq": "ge", "in": "in"}
"""The test that compares as an operator does, by Jinja's names for both."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles and runs templates; `begin` comes before each rendering. Safe to use from several threads."""

    intercepted_binops = frozenset({"+", "-", "*", "**", "/", "//", "%"})

    def __init__(self, **options: Any) -> None:
        self._work = threading.local()
        self.begin()
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=self._told, **options)
        self.concat = self.joined  # type: ignore[method-assign]
        self.globals.pop("lipsum")  # text by chance
        for name in _ENDLESS:
            self.filters.pop(name)

    def begin(self) -> None:
        """All work is allowed anew in this thread."""
        self._work.left = WORK_MAX

    def step(self, size: int = 0) -> None:
        """Count a round, and that it makes or goes through as much."""
        self._work.left = left = getattr(self._work, "left", WORK_MAX) - 1 - sizes.check(size) // _STRETCH
        if left < 0:
            raise TemplateError("it takes more work than any honest template")

    @property
    def counted_round(self) -> None:
        """Count a round. A property: where a template reads it, nothing is called."""
        self.step()

    def joined(self, pieces: Iterable[str]) -> str:
        """One text, if it comes to no more than the limits."""
        kept, size = [], 0
        for piece in pieces:
            self.step(len(piece))
            size = sizes.check(size + len(piece))
            kept.append(piece)
        return "".join(kept)

    def joined_by_tilde(self, *values: Any) -> str:
        """What `~` makes of its operands."""
        return self.joined([str(self._told(value)) for value in values])

    def guard(self) -> None:
        """Put the limits around all filters and tests, once all of them are there."""
        self.filters = {name: self._guarded(name, keep) for name, keep in self.filters.items()}
        self.filters |= {_KEY: self._told, _CUT: self._cut}
        self.tests |= {name: self._compared(order) for name, order in _ORDERS.items()}
        self.tests |= {"in": self._is_in}
        tests: dict[str, Any] = {**self.tests}
        self.tests |= {name: self._of_text(tests[name]) for name in ("lower", "upper", "filter", "test")}
        self.tests |= {name: _of_numbers(tests[name]) for name in ("odd", "even", "divisibleby")}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, if it comes to no more than the limits."""
        if operator == "+" and type(left) is str and type(right) is str:  # as nearly all are
            self.step(len(left) + len(right))
            return left + right
        self.step(sizes.of_operation(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, callee: Any, /, *arguments: Any, **named: Any) -> Any:
        """A call by a template, if it comes to no more than the limits. A macro counts its own work."""
        method = getattr(callee, "__wrapped__", callee)
        values = (*arguments, *named.values())
        sizes.check_numbers(values)
        if not isinstance(callee, Macro):
            self.step(sizes.of_method(getattr(method, "__name__", ""), getattr(method, "__self__", None), values))
        return super().call(context, callee, *arguments, **named)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`, which looks the argument up, or tells it where there is none."""
        return super().getitem(obj, argument if isinstance(argument, str) else self._told(argument))

    def _generate(self, source: nodes.Template, *arguments: Any, **named: Any) -> str:
        return super()._generate(_Counting().visit(source), *arguments, **named)

    def _told(self, value: Any) -> Any:
        """The same, that is about to become text, or a key."""
        if not sizes.is_light(value) and not isinstance(value, str):
            self.step(sizes.deep(value))
        return value

    def _cut(self, value: Any) -> Any:
        """The same, of which a part is about to be copied."""
        self.step(sizes.shallow(value))
        return value

    def _compared(self, order: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def compared(left: Any, right: Any) -> Any:
            if not sizes.is_light(left) and not sizes.is_light(right):
                self.step(sizes.lesser(left, right))
            return order(left, right)

        return compared

    def _is_in(self, value: Any, many: Any) -> bool:
        self._told(value)
        if not isinstance(many, dict):
            self.step(sizes.shallow(many) if sizes.is_light(value) else sizes.deep(many))
        return value in many

    def _of_text(self, test: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(test)
        def guarded(*arguments: Any) -> Any:
            self._told(arguments[-1])
            return test(*arguments)

        return guarded

    def _guarded(self, name: str, keep: Callable[..., Any]) -> Callable[..., Any]:
        skipped = int(hasattr(keep, "jinja_pass_arg"))  # it is given the context or the environment first

        @wraps(keep)
        def guarded(*arguments: Any, **named: Any) -> Any:
            value, *others = arguments[skipped:]
            others += named.values()
            sizes.check_numbers(others)
            size = sizes.shallow(value) if name in _LOOKING else sizes.deep(value)
            self.step(size + sizes.all_of(others))
            self.step(sizes.of_filter(name, value, others))
            made = keep(*arguments, **named)
            if isinstance(made, Iterator) and not isinstance(made, LoopContext):
                made = list(made)  # what comes later would not be counted
            self.step(sizes.shallow(made))
            return made

        return guarded


def _of_numbers(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test that takes what is left of a division, which of a text would be a format."""

    @wraps(test)
    def guarded(value: Any, *others: Any) -> Any:
        if not isinstance(value, int | float):
            raise TypeError(f"a number was expected, not a {type(value).__name__}")
        return test(value, *others)

    return guarded


class _Counting(NodeTransformer):
    """Counts what can be repeated, and has texts joined, compared and cut where we see it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (Jinja's names)
        self._counted(node)
        if node.test is not None:
            node.test = nodes.Or(nodes.EnvironmentAttribute("counted_round"), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        method = nodes.EnvironmentAttribute("joined_by_tilde", lineno=node.lineno)
        return nodes.Call(method, node.nodes, [], None, None, lineno=node.lineno)

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _filtered(node.key, _KEY)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, _CUT)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """A test for each operator, and a round for each but the first: they evaluate an operand twice."""
        self.generic_visit(node)
        left, [first, *more] = node.expr, node.ops
        compared = _as_test(left, first)
        for before, operand in zip(node.ops, more, strict=False):
            again = nodes.Or(nodes.EnvironmentAttribute("counted_round"), _as_test(before.expr, operand))
            compared = nodes.And(compared, again, lineno=node.lineno)
        return compared

    def _counted(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("counted_round"), lineno=node.lineno))
        return node


def _as_test(left: nodes.Expr, operand: nodes.Operand) -> nodes.Expr:
    """A comparison that is counted; as it is where one side is written out, which takes no time."""
    name, right = operand.op, operand.expr
    is_one_of = isinstance(right, nodes.List | nodes.Tuple) and all(isinstance(one, nodes.Const) for one in right.items)
    if is_one_of or ("in" not in name and any(isinstance(side, nodes.Const) for side in (left, right))):
        return nodes.Compare(left, [operand], lineno=operand.lineno)
    if name == "notin":
        return nodes.Not(_as_test(left, nodes.Operand("in", right, lineno=operand.lineno)), lineno=operand.lineno)
    return nodes.Test(left, _TEST_OF[name], [right], [], None, None, lineno=operand.lineno)


def _filtered(node: nodes.Expr, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
