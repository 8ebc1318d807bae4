"""The messages of a chat completion, every shape that OpenAI knows, checked strictly."""

from typing import Annotated, Literal, Self

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from jobs.contract.variants import Strict, by_type, text_or_list

Role = Literal["system", "assistant", "user", "function", "tool", "developer"]  # in the order OpenAI lists them


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class Audio(Strict):
    data: str
    format: Literal["wav", "mp3"]


class AudioPart(Strict):
    type: Literal["input_audio"]
    input_audio: Audio


class FileReference(Strict):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FilePart(Strict):
    type: Literal["file"]
    file: FileReference


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
    """One turn. `content` is text, or parts that are read one after the other."""

    role: Role
    content: (
        Annotated[
            Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(min_length=1), Tag("<list>")],
            text_or_list("objects"),
        ]
        | None
    ) = None
    name: str | None = None
    refusal: str | None = None
    audio: AudioReference | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = None

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
        return self

    def text(self) -> str:
        """What is said; parts that are not text say nothing here."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or () if isinstance(part, TextPart))
