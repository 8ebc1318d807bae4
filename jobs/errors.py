"""Every refusal a client can meet, each with its HTTP status, OpenAI `code` and `param`.

    Refusal
    ├── BadRequest            400
    │   └── TooLong           400  context_length_exceeded
    ├── Unauthenticated       401
    ├── NotFound              404
    ├── Conflict              409  never worth a retry
    ├── TooLarge              413
    ├── Failed                500  the work itself went wrong
    └── Unavailable           503  worth a retry

The mapping to the wire's envelope is in `jobs.contract.errors`.
"""

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


class Unauthenticated(Refusal):
    """No key, or one we do not know."""

    status = 401
    kind = "authentication_error"


class NotFound(Refusal):
    """Unknown, or somebody else's: the two are never told apart."""

    status = 404


class Conflict(Refusal):
    """The object is in a state that does not allow this."""

    status = 409


class TooLarge(Refusal):
    """More bytes than we take."""

    status = 413


class Failed(Refusal):
    """The work was accepted and went wrong on our side."""

    status = 500
    kind = "server_error"


class Unavailable(Refusal):
    """We cannot answer now and may be able to soon."""

    status = 503
    kind = "server_error"
