"""The batch on the wire: what creates one, and what a client reads of it."""

import re
from typing import Literal

from pydantic import BaseModel, Field, field_validator

from jobs.contract import limits
from jobs.contract.metadata import Metadata
from jobs.contract.variants import Strict

ENDPOINT = "/v1/chat/completions"
WINDOW = re.compile(r"([1-9]\d{0,4})([mhd])", re.ASCII)
WINDOW_UNITS = {"m": 60, "h": 3_600, "d": 86_400}
WINDOW_SECONDS_MIN, WINDOW_SECONDS_MAX = 60, 30 * 86_400


class OutputExpiry(Strict):
    """How long the result files live, counted from their own creation."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=limits.LIFETIME_SECONDS_MIN, le=limits.LIFETIME_SECONDS_MAX)


class CreateBatch(Strict):
    """The body of POST /v1/batches."""

    input_file_id: str = Field(min_length=1, max_length=256)
    endpoint: str = Field(json_schema_extra={"enum": [ENDPOINT]})
    completion_window: str = Field(json_schema_extra={"pattern": f"^{WINDOW.pattern}$"})
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None

    @field_validator("endpoint")
    @classmethod
    def _is_supported(cls, value: str) -> str:
        if value != ENDPOINT:
            raise ValueError(f"Invalid endpoint: {value}. Supported values: {ENDPOINT}.")
        return value

    @field_validator("completion_window")
    @classmethod
    def _is_window(cls, value: str) -> str:
        window_seconds(value)
        return value


def window_seconds(value: str) -> int:
    """`15m`, `24h` or `7d` in seconds. ValueError for anything else, or outside a minute to 30 days."""
    match = WINDOW.fullmatch(value)
    seconds = int(match[1]) * WINDOW_UNITS[match[2]] if match else 0
    if not WINDOW_SECONDS_MIN <= seconds <= WINDOW_SECONDS_MAX:
        raise ValueError(
            f"Invalid 'completion_window': '{value}'. Expected a number of minutes, hours or days between "
            "1m and 30d, such as '24h'."
        )
    return seconds


class Fault(BaseModel):
    """One fault of an input file; `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class FaultList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Fault]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    cached_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class BatchUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Batch(BaseModel):
    """A batch as a client reads it: every key present, null while unset."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: FaultList | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None
    waiting_for: str | None = None


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
