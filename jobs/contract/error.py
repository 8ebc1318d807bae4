"""A refusal on the wire."""

from pydantic import BaseModel


class Error(BaseModel):
    """Always all four keys."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    error: Error
