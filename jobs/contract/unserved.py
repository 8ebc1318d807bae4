"""What OpenAI knows and this server does not honour yet: refused by name, never ignored. Reads checked bodies."""

from collections.abc import Iterable

from jobs.contract.variants import listed
from jobs.errors import BadRequest

PARAMETERS: dict[str, tuple[object, ...]] = {  # and the values of each that ask for nothing
    "functions": (None, []),
    "function_call": (None, "none"),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "parallel_tool_calls": (None,),
    "modalities": (None, [], ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "moderation": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
}
ROLES = ("system", "assistant", "user", "developer")


def refuse(body: dict[str, object]) -> None:
    """BadRequest for the first thing that the body asks for and that is not honoured here."""
    messages = body["messages"]
    assert isinstance(messages, list), "the body was checked"
    for place, message in enumerate(messages):
        _refuse_in_message(f"messages[{place}]", message)
    for name, harmless in PARAMETERS.items():
        if name in body and body[name] not in harmless:
            raise BadRequest(
                f"Unsupported parameter: '{name}' is not supported with this model.",
                code="unsupported_parameter",
                param=name,
            )


def _refuse_in_message(path: str, message: dict[str, object]) -> None:
    _refuse_value(f"{path}.role", message["role"], ROLES)
    for name in ("refusal", "audio", "tool_calls", "function_call"):
        if message.get(name):
            raise BadRequest(
                f"Unsupported parameter: '{path}.{name}' is not supported with this model.",
                code="unsupported_parameter",
                param=f"{path}.{name}",
            )
    content = message.get("content")
    for place, part in enumerate(content if isinstance(content, list) else ()):
        _refuse_value(f"{path}.content[{place}].type", part["type"], ("text",))


def _refuse_value(path: str, found: object, supported: Iterable[str]) -> None:
    names = tuple(supported)
    if found not in names:
        raise BadRequest(
            f"Unsupported value: '{path}' does not support '{found}' with this model. "
            f"Supported values are: {listed(names)}.",
            code="unsupported_value",
            param=path,
        )
