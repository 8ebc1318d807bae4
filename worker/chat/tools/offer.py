"""What a body offers the model to call, and what it demands."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.contract import strict_schema
from jobs.contract.chat import ChatCompletion
from jobs.contract.tools import AllowedToolsChoice, Function, FunctionChoice, FunctionTool, ToolChoice
from jobs.errors import BadRequest
from worker.chat.tools.calls import Call, Malformed
from worker.chat.tools.families import Family


@dataclass(frozen=True, slots=True)
class Offer:
    """Functions to call. A body that offers none, or forbids to call any, has no offer."""

    shown: tuple[Function, ...]
    """Those that the model is told of."""
    callable: tuple[Function, ...]
    """Those that it may call."""
    is_forced: bool
    """Whether the answer must be a call."""
    is_named: bool
    """Whether the body says which."""
    is_parallel: bool
    is_legacy: bool
    """Whether the body has `functions`, and so the answer has a `function_call`."""

    @property
    def is_held(self) -> bool:
        """Whether what follows the beginning of a call must be one."""
        return self.is_forced or any(function.strict for function in self.callable)

    def read(self, text: str, family: Family) -> tuple[str, list[Call]]:
        """What an answer says, and its calls. Text in which not every call is well-formed and of a function that may
        be called is said as it stands.
        """
        try:
            said, calls = family.parse(text)
        except Malformed:
            return text, []
        names = {function.name for function in self.callable}
        if not all(call.name in names for call in calls):
            return text, []
        return said, calls if self.is_parallel else calls[:1]


def of(wanted: ChatCompletion) -> Offer | None:
    """BadRequest for a schema that cannot be that of a function's arguments."""
    if wanted.functions:
        return _legacy(wanted.functions, wanted)
    functions = tuple(tool.function for tool in wanted.tools or () if isinstance(tool, FunctionTool))
    choice = wanted.tool_choice or "auto"
    if not functions or choice == "none":
        return None
    _refuse_schemas(functions, "tools[{}].function.parameters")
    return Offer(
        shown=functions,
        callable=_callable(functions, choice),
        is_forced=_is_forced(choice),
        is_named=isinstance(choice, FunctionChoice),
        is_parallel=wanted.parallel_tool_calls is not False and not isinstance(choice, FunctionChoice),
        is_legacy=False,
    )


def _legacy(functions: Sequence[Function], wanted: ChatCompletion) -> Offer | None:
    choice = wanted.function_call or "auto"
    if choice == "none":
        return None
    _refuse_schemas(functions, "functions[{}].parameters")
    chosen = functions if choice == "auto" else [one for one in functions if one.name == choice.name]
    is_named = choice != "auto"
    return Offer(tuple(functions), tuple(chosen), is_named, is_named, is_parallel=False, is_legacy=True)


def _callable(functions: Sequence[Function], choice: ToolChoice) -> tuple[Function, ...]:
    match choice:
        case FunctionChoice():
            names = {choice.function.name}
        case AllowedToolsChoice():
            names = set(choice.allowed_tools.names)
        case _:
            return tuple(functions)
    return tuple(function for function in functions if function.name in names)


def _is_forced(choice: ToolChoice) -> bool:
    if isinstance(choice, AllowedToolsChoice):
        return choice.allowed_tools.mode == "required"
    return choice == "required" or isinstance(choice, FunctionChoice)


def _refuse_schemas(functions: Sequence[Function], path: str) -> None:
    """In OpenAI's words."""
    for place, function in enumerate(functions):
        if fault := _fault_of(function):
            raise BadRequest(
                f"Invalid schema for function '{function.name}': {fault}",
                code="invalid_function_parameters",
                param=path.format(place),
            )


def _fault_of(function: Function) -> str | None:
    schema = function.parameters or {}
    kind = schema.get("type", "object")
    if kind != "object":
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{kind}\"'."
    return strict_schema.fault_of(schema) if function.strict and schema else None
