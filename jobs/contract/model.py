"""The model on the wire."""

from typing import Literal

from pydantic import BaseModel


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gristmill"
    shutdown_date: str | None = None
    waiting_for: str | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
