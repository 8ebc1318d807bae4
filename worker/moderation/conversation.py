"""What is judged: all the text of a body that its model reads, and all the text of an answer that a client gets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import orjson

# Strings of a message that say nothing, to the model or to the client.
UNSAID: Final = frozenset({"role", "type", "id", "tool_call_id"})
# What the model reads of a body beside its messages.
READ: Final = ("tools", "functions", "response_format", "chat_template_kwargs")


class Speaker(StrEnum):
    """Who said it, as guard models call them."""

    USER = "User"
    """Whoever asks: every role but the assistant's."""
    AGENT = "Agent"


@dataclass(frozen=True, slots=True)
class Turn:
    speaker: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, of which those from `fresh` on are to be judged, and those before are only what went before."""

    turns: tuple[Turn, ...]
    fresh: int = 0

    @property
    def text(self) -> str:
        """All that is to be judged."""
        return "\n\n".join(turn.text for turn in self.turns[self.fresh :])

    def answered(self, message: Mapping[str, object]) -> "Conversation":
        """This conversation with an answer, which alone is to be judged."""
        return Conversation((*self.turns, Turn(Speaker.AGENT, _text(message))), fresh=len(self.turns))


def asked(body: Mapping[str, object]) -> Conversation:
    """A prompt: every message, whoever is to have said it, after the tools and formats. Reads checked bodies."""
    messages = body["messages"]
    assert isinstance(messages, list), "the body was checked"
    offered = [Turn(Speaker.USER, orjson.dumps(body[name]).decode()) for name in READ if body.get(name)]
    return Conversation((*offered, *map(_turn, messages)))


def strings(value: object, *, key: str = "") -> Iterator[str]:
    """Every text in a message; the arguments of a call without their escapes, for so they are read."""
    match value:
        case str() if key == "arguments":
            yield _unescaped(value)
        case str() if key not in UNSAID:
            yield value
        case list():
            for one in value:
                yield from strings(one, key=key)
        case dict():
            for name, one in value.items():
                yield from strings(one, key=name)


def _turn(message: Mapping[str, object]) -> Turn:
    speaker = Speaker.AGENT if message["role"] == "assistant" else Speaker.USER
    return Turn(speaker, _text(message))


def _text(message: Mapping[str, object]) -> str:
    """Once each: thinking has two names on the wire."""
    return "\n".join(dict.fromkeys(strings(message)))


def _unescaped(arguments: str) -> str:
    """`{"a": "\\u0062"}` as `{"a":"b"}`; what is not JSON stays as it is."""
    try:
        return orjson.dumps(orjson.loads(arguments)).decode()
    except orjson.JSONDecodeError:
        return arguments
