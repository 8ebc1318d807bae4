"""The answer of a chat completion on the wire, whole and in chunks.

Every key that OpenAI always sends is always here; those that it leaves out when they have no value are left
out of `Delta` only.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class Open(BaseModel):
    """What a worker wrote: known keys checked, others kept as they are."""

    model_config = ConfigDict(extra="allow")


class PromptTokensDetails(Open):
    cached_tokens: int | None = None
    audio_tokens: int | None = None


class CompletionTokensDetails(Open):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class CompletionUsage(Open):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class AnsweredMessage(Open):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    annotations: list[dict[str, object]] | None = None
    tool_calls: list[dict[str, object]] | None = None
    function_call: dict[str, object] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ContentFilterResult(Open):
    """What was found in one category, in the shape that Azure has for those without a severity."""

    filtered: bool
    detected: bool


class Choice(Open):
    """`content_filter_results` is there only where the operator's filter withheld the content: by category."""

    index: int
    message: AnsweredMessage
    logprobs: dict[str, object] | None = None
    finish_reason: FinishReason
    content_filter_results: dict[str, ContentFilterResult] | None = None


class Completion(Open):
    """A `chat.completion`, as it stands in the ledger and in output files."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None


class Delta(BaseModel):
    """What a chunk adds to its choice; keys without a value are not sent."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, object]] | None = None
    function_call: dict[str, object] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChunkChoice(BaseModel):
    """`content_filter_results` as in a whole answer, and only beside such a `finish_reason`."""

    index: int
    delta: Delta
    logprobs: dict[str, object] | None = None
    finish_reason: FinishReason | None = None
    content_filter_results: dict[str, ContentFilterResult] | None = None


class Chunk(BaseModel):
    """A `chat.completion.chunk`; the one that tells the usage has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None
