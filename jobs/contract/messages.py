"""The messages of a chat completion, every shape that OpenAI knows, checked strictly."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from jobs.contract.variants import Strict, by_type, text_or_list

LEGACY_CALL_ID: Final = "call_function"
"""What a `function_call` and its `function` message have in common; they name no id themselves."""

Role = Literal["system", "assistant", "user", "function", "tool", "developer"]  # in the order OpenAI lists them


class CacheBreakpoint(Strict):
    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class ImageUrl(Strict):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class Audio(Strict):
    data: str
    format: Literal["wav", "mp3"]


class AudioPart(Strict):
    type: Literal["input_audio"]
    input_audio: Audio
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class FileReference(Strict):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FilePart(Strict):
    type: Literal["file"]
    file: FileReference
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: str


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[AudioPart, Tag("<input_audio>")]
    | Annotated[FilePart, Tag("<file>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    by_type("text", "image_url", "input_audio", "file", "refusal"),
]


class CalledFunction(Strict):
    name: str
    arguments: str


class FunctionCall(Strict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class CalledCustom(Strict):
    name: str
    input: str


class CustomCall(Strict):
    id: str
    type: Literal["custom"]
    custom: CalledCustom


ToolCall = Annotated[
    Annotated[FunctionCall, Tag("<function>")] | Annotated[CustomCall, Tag("<custom>")],
    by_type("function", "custom"),
]


class AudioReference(Strict):
    id: str


class Message(Strict):
    """One turn. `content` is text, or parts that are read one after the other.

    `annotations`, `reasoning_content` and `reasoning` are what an answer has more than OpenAI's requests know: so
    that an answer can be sent back as it came.
    """

    role: Role
    content: (
        Annotated[
            Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(min_length=1, fail_fast=True), Tag("<list>")],
            text_or_list("objects"),
        ]
        | None
    ) = None
    name: str | None = None
    refusal: str | None = None
    audio: AudioReference | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = None
    annotations: Annotated[list[dict[str, object]], Field(fail_fast=True)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        """Content, but in an assistant's turn that says something else; and what a tool's turn answers."""
        says_else = self.refusal or self.audio or self.tool_calls or self.function_call
        is_optional = self.role == "function" or (self.role == "assistant" and says_else)
        if self.content is None and not is_optional:
            kind = "null_content" if "content" in self.model_fields_set else "missing_in_message"
            raise PydanticCustomError(kind, "no content", {"field": "content"})
        if self.role == "tool" and self.tool_call_id is None:
            raise PydanticCustomError("missing_in_message", "no id", {"field": "tool_call_id"})
        if self.role == "function" and self.name is None:
            raise PydanticCustomError("missing_in_message", "no name", {"field": "name"})
        return self

    def text(self) -> str:
        """What is said; a refusal is said too, and parts of other kinds say nothing here."""
        if isinstance(self.content, str):
            return self.content
        if self.content is None:
            return self.refusal or ""
        return "".join(_said(part) for part in self.content)

    @property
    def thoughts(self) -> str | None:
        return self.reasoning_content or self.reasoning

    @property
    def answered_id(self) -> str | None:
        """The call that this is the result of."""
        return LEGACY_CALL_ID if self.role == "function" else self.tool_call_id

    def calls(self) -> list[FunctionCall]:
        """The functions that were called; `function_call` is the older form of a single one."""
        if self.function_call is not None:
            return [FunctionCall(id=LEGACY_CALL_ID, type="function", function=self.function_call)]
        return [call for call in self.tool_calls or () if isinstance(call, FunctionCall)]


def _said(part: Part) -> str:
    match part:
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
    return ""
