"""Every refusal a client can meet, each with its HTTP status, OpenAI `code` and `param`.

    Refusal
    ├── BadRequest            400
    │   ├── TooLong           400  context_length_exceeded
    │   └── ContentFiltered   400  content_filter
    ├── Unauthenticated       401
    ├── Forbidden             403
    ├── NotFound              404
    ├── TimedOut              408  worth a retry
    ├── Conflict              409  never worth a retry
    ├── TooLarge              413
    ├── UnsupportedType       415
    ├── TooMany               429  worth a retry, after the time it names
    ├── Failed                500  the work itself went wrong
    └── Unavailable           503  worth a retry

The mapping to the wire's envelope is in `jobs.contract.errors`.
"""

import math
from collections.abc import Iterable
from typing import ClassVar


class Refusal(Exception):
    """A request that cannot be granted, in words for the person who sent it."""

    status: ClassVar[int] = 400
    kind: ClassVar[str] = "invalid_request_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class BadRequest(Refusal):
    """What was sent is not what the contract allows."""


class TooLong(BadRequest):
    """The prompt, or the prompt with its answer, does not fit the model's context."""

    def __init__(self, *, context_tokens: int, prompt_tokens: int, answer_tokens: int) -> None:
        asked = prompt_tokens + answer_tokens
        super().__init__(
            f"This model's maximum context length is {context_tokens} tokens. However, you requested "
            f"{asked} tokens ({prompt_tokens} in the messages, {answer_tokens} in the completion). "
            "Please reduce the length of the messages or completion.",
            code="context_length_exceeded",
            param="messages",
        )


class ContentFiltered(BadRequest):
    """The operator's content filter does not let the prompt pass; the parameter is called as Azure calls it."""

    def __init__(self, categories: Iterable[str]) -> None:
        super().__init__(
            "The response was filtered due to the prompt triggering the content filter of this server: "
            f"{', '.join(sorted(categories))}. Please modify your prompt and retry.",
            code="content_filter",
            param="prompt",
        )


class Unauthenticated(Refusal):
    """No key, or one we do not know."""

    status = 401
    kind = "authentication_error"


class Forbidden(Refusal):
    """A key that we know, and that may not do this."""

    status = 403


class NotFound(Refusal):
    """Unknown, or somebody else's: the two are never told apart."""

    status = 404


class TimedOut(Refusal):
    """The client did not send what it began to."""

    status = 408


class Conflict(Refusal):
    """The object is in a state that does not allow this."""

    status = 409


class TooLarge(Refusal):
    """More bytes than we take."""

    status = 413


class UnsupportedType(Refusal):
    """A body of a kind that the route does not read."""

    status = 415


class TooMany(Refusal):
    """More than a key or a project may have at once; `retry_seconds` says when to ask again."""

    status = 429
    kind = "requests"

    def __init__(self, message: str, *, code: str, retry_seconds: float) -> None:
        super().__init__(message, code=code)
        self.retry_seconds = max(1, math.ceil(retry_seconds))


class Failed(Refusal):
    """The work was accepted and went wrong on our side."""

    status = 500
    kind = "server_error"


class Unavailable(Refusal):
    """We cannot answer now and may be able to soon."""

    status = 503
    kind = "server_error"
