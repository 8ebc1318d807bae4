"""The messages of a body as a chat template takes them. What users wrote goes through a shield on its way."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import orjson

from jobs.contract.messages import FunctionCall, Message
from jobs.contract.tools import Function
from worker.chat.tools.calls import Call
from worker.chat.tools.families import Spoken

Shield = Callable[[str], str]
Turn = dict[str, object]

SHORT_ID_CHARACTERS: Final = 9
OLDER_ROLES: Final = MappingProxyType({"developer": "system", "function": "tool"})
NOTHING: Final = MappingProxyType[str, str]({})


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template is given: `tools` are None where it does not see them itself."""

    turns: list[Turn]
    tools: list[Turn] | None = field(default=None)


def of(messages: Sequence[Message], functions: Sequence[Function], spoken: Spoken, shield: Shield) -> Conversation:
    """`functions` are those that the model is told of."""
    tools = [_tool(function, shield) for function in functions]
    if spoken.by_template:
        called = {call.id: call.function.name for message in messages for call in message.calls()}
        return Conversation([_turn(message, spoken, shield, called) for message in messages], tools or None)
    turns = list(_told(messages, spoken, shield))
    return Conversation(_with_instructions(turns, spoken.family.instructions(tools)) if tools else turns)


def _turn(message: Message, spoken: Spoken, shield: Shield, called: Mapping[str, str] = NOTHING) -> Turn:
    """No template knows `developer`, OpenAI's newer name of `system`, nor `function`, the older one of `tool`. Some
    want to know which function a result is of, which OpenAI's clients do not say: `called` names it by the call's id.
    """
    turn: Turn = {"role": OLDER_ROLES.get(message.role, message.role), "content": shield(message.text())}
    name = message.name or called.get(message.answered_id or "")
    if name is not None:
        turn["name"] = shield(name)
    if message.thoughts:
        turn["reasoning_content"] = shield(message.thoughts)
    if message.answered_id is not None:
        turn["tool_call_id"] = _id(message.answered_id, spoken, shield)
    if made := message.calls():
        turn["tool_calls"] = [_call(call, spoken, shield) for call in made]
    return turn


def _call(call: FunctionCall, spoken: Spoken, shield: Shield) -> Turn:
    function = {"name": shield(call.function.name), "arguments": _arguments(call.function.arguments, shield)}
    return {"id": _id(call.id, spoken, shield), "type": "function", "function": function}


def _arguments(text: str, shield: Shield) -> object:
    """Templates write the arguments as JSON themselves, so they get the object and not its text; but for one that could
    not be written, such as half a surrogate pair.
    """
    try:
        orjson.loads(text)  # stricter than the other, which alone keeps long integers
        return shielded(json.loads(text), shield)
    except (ValueError, RecursionError):
        return shield(text)


def _id(call_id: str, spoken: Spoken, shield: Shield) -> str:
    """Some templates take ids of nine signs only; the same id becomes the same."""
    is_short = len(call_id) == SHORT_ID_CHARACTERS and call_id.isascii() and call_id.isalnum()
    if spoken.by_short_id and not is_short:
        return hashlib.sha256(call_id.encode()).hexdigest()[:SHORT_ID_CHARACTERS]
    return shield(call_id)


def _told(messages: Iterable[Message], spoken: Spoken, shield: Shield) -> Iterable[Turn]:
    """For a template that writes no tools: calls as the model writes them, results as a user's turn."""
    results: list[str] = []
    for message in messages:
        if message.role in ("tool", "function"):
            results.append(f"<tool_response>\n{shield(message.text())}\n</tool_response>")
            continue
        if results:
            yield {"role": "user", "content": "\n".join(results)}
            results = []
        turn = _turn(message, spoken, shield)
        if turn.pop("tool_calls", None):
            made = [Call(call.function.name, call.function.arguments) for call in message.calls()]
            said = f"{turn['content']}\n" if turn["content"] else ""
            turn["content"] = said + spoken.family.spell(
                [Call(shield(one.name), shield(one.arguments)) for one in made]
            )
        yield turn
    if results:
        yield {"role": "user", "content": "\n".join(results)}


def _with_instructions(turns: list[Turn], instructions: str) -> list[Turn]:
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{instructions}"}, *turns[1:]]
    return [{"role": "system", "content": instructions}, *turns]


def _tool(function: Function, shield: Shield) -> Turn:
    """As it was sent, but for `strict`, which is no business of the model."""
    described = function.model_dump(exclude_unset=True, exclude={"strict"})
    return {"type": "function", "function": shielded(described, shield)}


def shielded(value: object, shield: Shield) -> object:
    match value:
        case str():
            return shield(value)
        case list():
            return [shielded(item, shield) for item in value]
        case dict():
            return {shield(key): shielded(item, shield) for key, item in value.items()}
    return value
