"""The upload on the wire: a file, and how it may come in parts."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field

from jobs.contract import limits
from jobs.contract.batch import OutputExpiry
from jobs.contract.file import File
from jobs.contract.variants import Strict

Purpose = Literal["batch", "assistants", "fine-tune", "vision", "user_data", "evals"]
PURPOSES: tuple[str, ...] = get_args(Purpose)


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("Invalid 'filename': it must not contain the character U+0000.")
    return value


class CreateFile(Strict):
    """The fields of the form of POST /v1/files, without the file."""

    purpose: Purpose
    expires_after: OutputExpiry | None = None

    @property
    def lifetime_seconds(self) -> int | None:
        if self.expires_after is not None:
            return self.expires_after.seconds
        return limits.FILE_LIFETIME_SECONDS if self.purpose == "batch" else None


class CreateUpload(CreateFile):
    """The body of POST /v1/uploads."""

    bytes: Annotated[int, Field(ge=1)]
    filename: Annotated[str, Field(min_length=1, max_length=limits.FILENAME_CHARACTERS_MAX), AfterValidator(_storable)]
    mime_type: Annotated[str, Field(min_length=1, max_length=255)]


class CompleteUpload(Strict):
    """The body of POST /v1/uploads/{id}/complete."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=limits.UPLOAD_PARTS_MAX)]
    md5: str | None = None


class Upload(BaseModel):
    """An upload as a client reads it; `file` once it is complete."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: File | None


class UploadPart(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
