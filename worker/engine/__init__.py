"""Token ids in, token ids out: knows nothing of text, of batches or of databases."""

from worker.engine.engine import Engine
from worker.engine.errors import (
    EngineError,
    EngineFailed,
    EngineStopped,
    NothingToSample,
    OutOfSlots,
    PromptRefused,
    PromptTooLong,
)
from worker.engine.loading import load
from worker.engine.logprobs import TokenLogprob
from worker.engine.progress import Progress
from worker.engine.prompt import Completion, FinishReason, Prompt, Watcher
from worker.engine.sampling import Sampling
from worker.engine.settings import Device, EngineSettings

__all__ = [
    "Completion",
    "Device",
    "Engine",
    "EngineError",
    "EngineFailed",
    "EngineSettings",
    "EngineStopped",
    "FinishReason",
    "NothingToSample",
    "OutOfSlots",
    "Progress",
    "Prompt",
    "PromptRefused",
    "PromptTooLong",
    "Sampling",
    "TokenLogprob",
    "Watcher",
    "load",
]
