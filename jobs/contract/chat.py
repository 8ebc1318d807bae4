"""The chat completion on the wire: the parameters we honour, checked strictly.

Strict: `"1"` is no integer and `true` is no number, as at OpenAI. The order of the fields is the order
in which OpenAI checks them. What is known to OpenAI and not yet honoured here is refused by name, never
ignored.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from jobs.contract import limits
from jobs.contract.metadata import Metadata
from jobs.errors import BadRequest

Decimal = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]
Stop = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=limits.STOP_CHARACTERS_MAX)]

UNSUPPORTED = frozenset(
    {
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "modalities",
        "moderation", "parallel_tool_calls", "prediction", "presence_penalty", "reasoning_effort",
        "tool_choice", "tools", "top_logprobs", "verbosity", "web_search_options",
    }
)  # fmt: skip
HARMLESS: dict[str, tuple[object, ...]] = {  # values of the above that ask for nothing
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logprobs": (None, False),
    "top_logprobs": (None,),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "modalities": (None, ["text"]),
}


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn. `content` is text, or parts of text that are read one after the other."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(Strict):
    type: Literal["text", "json_object"]


class StreamOptions(Strict):
    include_usage: bool | None = None


class ChatCompletion(Strict):
    """The body of a chat completion. `top_k`, `min_p` are extensions that other servers share."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MESSAGES_MAX)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=limits.CHOICES_MAX)] | None = None
    temperature: Annotated[Decimal, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[Decimal, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Decimal, Field(ge=0.0, le=1.0)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=limits.STOPS_MAX)] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None

    @property
    def answer_tokens_max(self) -> int | None:
        """The longest answer asked for; `max_completion_tokens` wins over the older name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        match self.stop:
            case None:
                return ()
            case str():
                return (self.stop,)
            case _:
                return tuple(self.stop)


def without_unsupported(body: dict[str, object]) -> dict[str, object]:
    """The body without OpenAI's parameters that ask for nothing here. BadRequest names one that does."""
    for name in sorted(UNSUPPORTED & body.keys()):
        if body[name] not in HARMLESS.get(name, (None,)):
            raise BadRequest(
                f"Unsupported parameter: '{name}' is not supported with this model.",
                code="unsupported_parameter",
                param=name,
            )
    return {name: value for name, value in body.items() if name not in UNSUPPORTED}
