"""The chat completion on the wire: the parameters we honour, checked strictly.

Strict: `"1"` is no integer and `true` is no number, as at OpenAI. The order of the fields is the order
in which OpenAI checks them. What is known to OpenAI and not yet honoured here is refused by name, never
ignored.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, field_validator
from pydantic_core import PydanticCustomError

from jobs.contract import limits
from jobs.contract.metadata import Metadata
from jobs.errors import BadRequest

Decimal = Annotated[float, Field(allow_inf_nan=False)]
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


def _text_or_list(value: object) -> str | None:
    """Which of the two a value is; in angle brackets, which `errors.path_of` leaves out."""
    if isinstance(value, str):
        return "<text>"
    return "<list>" if isinstance(value, list) else None


def _either(what: str) -> Discriminator:
    """Chooses between text and a list by the value's own type, so that a fault names just the one meant."""
    return Discriminator(
        _text_or_list,
        custom_error_type="neither",
        custom_error_message=f"one of a string or array of {what}",
    )


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


OTHER_PARTS = ("image_url", "input_audio", "file", "refusal")


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn. `content` is text, or parts of text that are read one after the other."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Tag("<list>")], _either("objects")]
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _has_only_text(cls, content: object) -> object:
        for place, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in OTHER_PARTS:
                context = {"place": place, "part": kind}
                raise PydanticCustomError("unsupported_part", "part {place} is {part}", context)
        return content

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
    stop: (
        Annotated[
            Annotated[Stop, Tag("<text>")] | Annotated[list[Stop], Field(max_length=limits.STOPS_MAX), Tag("<list>")],
            _either("strings"),
        ]
        | None
    ) = None
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
