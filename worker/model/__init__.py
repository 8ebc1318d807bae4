"""A folder of weights becomes an ONNX graph: knows nothing of requests."""

from worker.model.errors import (
    DamagedModel,
    ModelError,
    SourceUnavailable,
    UnknownModel,
    UnreadableWeights,
    UnsupportedModel,
)
from worker.model.folder import ModelFolder, open_model, verify
from worker.model.precision import Precision
from worker.model.sources import SOURCES
from worker.model.spec import ModelSpec
from worker.model.store import add, list_damaged, list_models, open_named, remove
from worker.model.tokenizer import Tokenizer

__all__ = [
    "SOURCES",
    "DamagedModel",
    "ModelError",
    "ModelFolder",
    "ModelSpec",
    "Precision",
    "SourceUnavailable",
    "Tokenizer",
    "UnknownModel",
    "UnreadableWeights",
    "UnsupportedModel",
    "add",
    "list_damaged",
    "list_models",
    "open_model",
    "open_named",
    "remove",
    "verify",
]
