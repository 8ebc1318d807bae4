"""The body of a chat completion on the wire, checked strictly and in OpenAI's order.

Strict: `"1"` is no integer and `true` is no number, as at OpenAI. The order of the fields is the order in
which OpenAI checks them, and the first fault is the one that is told. What is known to OpenAI and not yet
honoured here is refused by name, in `unserved`, and never ignored.
"""

import re
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, Tag, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from jobs.contract import limits, tools, unserved
from jobs.contract.errors import refusal_of
from jobs.contract.formats import ResponseFormat, StructuredOutputs
from jobs.contract.messages import Message, TextPart
from jobs.contract.metadata import Metadata
from jobs.contract.tools import Function, Named, Tool, ToolChoice, Tools
from jobs.contract.variants import Strict, at_most, text_or_list, text_or_object

Decimal = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0)]
Penalty = Annotated[Decimal, Field(ge=-2.0, le=2.0)]
Bias = Annotated[Decimal, Field(ge=-100.0, le=100.0)]
Stop = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=limits.STOP_CHARACTERS_MAX)]
Biases = Annotated[dict[str, Bias], Field(max_length=limits.LOGIT_BIASES_MAX), at_most(limits.LOGIT_BIASES_MAX)]
BIASED_TOKEN: Final = re.compile("0|[1-9][0-9]{0,8}")


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class PromptCacheOptions(Strict):
    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class Prediction(Strict):
    type: Literal["content"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("<list>")],
        text_or_list("objects"),
    ]


class ChatCompletion(Strict):
    """The body of a chat completion.

    Extensions that other servers share: `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos`,
    `stop_token_ids`, `structured_outputs`, `chat_template_kwargs` and `thinking_token_budget`.
    """

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MESSAGES_MAX, fail_fast=True)]
    functions: Annotated[list[Function], Field(max_length=limits.TOOLS_MAX)] | None = None
    function_call: (
        Annotated[
            Annotated[Literal["none", "auto"], Tag("<text>")] | Annotated[Named, Tag("<object>")],
            text_or_object("one of a string or object"),
        ]
        | None
    ) = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=limits.CHOICES_MAX)] | None = None
    temperature: Annotated[Decimal, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[Decimal, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[Decimal, Field(ge=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[Decimal, Field(ge=0.01, le=100.0)] | None = None
    logit_bias: Biases | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=limits.TOP_LOGPROBS_MAX)] | None = None
    stop: (
        Annotated[
            Annotated[Stop, Tag("<text>")] | Annotated[list[Stop], Field(max_length=limits.STOPS_MAX), Tag("<list>")],
            text_or_list("strings"),
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=limits.STOP_TOKEN_IDS_MAX)] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(fail_fast=True)] | None = None
    audio: dict[str, object] | None = None
    prediction: Prediction | None = None
    moderation: dict[str, object] | None = None
    web_search_options: dict[str, object] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking_token_budget: Annotated[int, Field(ge=-1)] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    user: str | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    safety_identifier: Annotated[str, Field(max_length=limits.SAFETY_IDENTIFIER_CHARACTERS_MAX)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @field_validator("tool_choice")
    @classmethod
    def _chooses_an_offered_tool(cls, choice: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        offered: list[Tool] = info.data.get("tools") or []
        if choice is None or "tools" not in info.data:  # the fault of `tools` itself comes first
            return choice
        if not offered and choice != "none":
            raise PydanticCustomError("needs_tools", "no tools")
        if missing := tools.absent(choice, offered):
            raise PydanticCustomError("absent_tool", "no such tool", {"sort": missing[0], "tool": missing[1]})
        return choice

    @field_validator("function_call")
    @classmethod
    def _names_an_offered_function(
        cls, choice: Literal["none", "auto"] | Named | None, info: ValidationInfo
    ) -> Literal["none", "auto"] | Named | None:
        offered: list[Function] = info.data.get("functions") or []
        if isinstance(choice, Named) and choice.name not in {function.name for function in offered}:
            raise PydanticCustomError("absent_function", "no such function", {"function": choice.name})
        return choice

    @field_validator("tools")
    @classmethod
    def _stands_without_functions(cls, offered: Tools | None, info: ValidationInfo) -> Tools | None:
        if offered and info.data.get("functions"):
            raise PydanticCustomError("tools_and_functions", "both")
        return offered

    @field_validator("parallel_tool_calls")
    @classmethod
    def _has_tools(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value is not None and "tools" in info.data and not info.data["tools"]:
            raise PydanticCustomError("needs_tools", "no tools")
        return value

    @field_validator("min_tokens")
    @classmethod
    def _fits_into_the_longest_answer(cls, value: int | None, info: ValidationInfo) -> int | None:
        most = info.data.get("max_completion_tokens") or info.data.get("max_tokens")
        if value is not None and most is not None and value > most:
            raise PydanticCustomError("min_above_max", "too many", {"found": value, "most": most})
        return value

    @field_validator("logit_bias")
    @classmethod
    def _names_token_ids(cls, biases: dict[str, float] | None) -> dict[str, float] | None:
        for key in biases or ():
            if not BIASED_TOKEN.fullmatch(key):
                raise PydanticCustomError("no_token_id", "no token id", {"key": key})
        return biases

    @field_validator("structured_outputs")
    @classmethod
    def _stands_alone(cls, value: StructuredOutputs | None, info: ValidationInfo) -> StructuredOutputs | None:
        form = info.data.get("response_format")
        if value is not None and form is not None and form.type != "text":
            raise PydanticCustomError("two_structures", "two", {"form": form.type})
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _has_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and "logprobs" in info.data and not info.data["logprobs"]:
            raise PydanticCustomError("needs_logprobs", "no logprobs")
        return value

    @property
    def answer_tokens_max(self) -> int | None:
        """The longest answer asked for; `max_completion_tokens` wins over the older name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def thinking_tokens_max(self) -> int | None:
        """The longest thinking asked for; -1 asks for none."""
        return None if self.thinking_token_budget == -1 else self.thinking_token_budget

    @property
    def biases(self) -> dict[int, float]:
        """What is added to the logit of each token."""
        return {int(token_id): bias for token_id, bias in (self.logit_bias or {}).items()}

    @property
    def stops(self) -> tuple[str, ...]:
        match self.stop:
            case None:
                return ()
            case str():
                return (self.stop,)
            case _:
                return tuple(self.stop)


def read(body: dict[str, object]) -> ChatCompletion:
    """The body, checked. BadRequest for the fault that OpenAI would tell, or for what is not honoured here."""
    try:
        order = ChatCompletion.model_validate(body)
    except ValidationError as error:
        raise refusal_of(error, known=ChatCompletion.model_fields) from None
    unserved.refuse(body)
    return order
