"""What OpenAI knows and this server does not honour yet: refused by name, never ignored. Reads checked bodies."""

from collections.abc import Iterable
from typing import NoReturn

from jobs.contract.variants import listed
from jobs.errors import BadRequest

PARAMETERS: dict[str, tuple[object, ...]] = {  # and the values of each that ask for nothing
    "modalities": (None, [], ["text"]),
    "audio": (None,),
    "moderation": (None,),
    "web_search_options": (None,),
    "verbosity": (None, "medium"),
}


def refuse(body: dict[str, object]) -> None:
    """BadRequest for the first thing that the body asks for and that is not honoured here."""
    for place, message in enumerate(_objects(body, "messages")):
        _refuse_in_message(f"messages[{place}]", message)
    for place, tool in enumerate(_objects(body, "tools")):
        _refuse_value(f"tools[{place}].type", tool["type"], ("function",))
    for name, harmless in PARAMETERS.items():
        if name in body and body[name] not in harmless:
            _refuse_parameter(name)


def _refuse_in_message(path: str, message: dict[str, object]) -> None:
    if message.get("audio"):
        _refuse_parameter(f"{path}.audio")
    for place, call in enumerate(_objects(message, "tool_calls")):
        _refuse_value(f"{path}.tool_calls[{place}].type", call["type"], ("function",))
    if isinstance(message.get("content"), list):
        parts = ("text", "refusal") if message["role"] == "assistant" else ("text",)
        for place, part in enumerate(_objects(message, "content")):
            _refuse_value(f"{path}.content[{place}].type", part["type"], parts)


def _objects(within: dict[str, object], name: str) -> list[dict[str, object]]:
    """A list of the checked body; one that is not there is empty."""
    found = within.get(name) or []
    assert isinstance(found, list), "the body was checked"
    return found


def _refuse_parameter(path: str) -> NoReturn:
    raise BadRequest(
        f"Unsupported parameter: '{path}' is not supported with this model.", code="unsupported_parameter", param=path
    )


def _refuse_value(path: str, found: object, supported: Iterable[str]) -> None:
    names = tuple(supported)
    if found not in names:
        raise BadRequest(
            f"Unsupported value: '{path}' does not support '{found}' with this model. "
            f"Supported values are: {listed(names)}.",
            code="unsupported_value",
            param=path,
        )
