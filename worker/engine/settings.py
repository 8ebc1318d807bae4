"""What an operator may choose about one engine."""

from dataclasses import dataclass
from enum import StrEnum


class Device(StrEnum):
    """Where the model runs."""

    AUTO = "auto"
    """CUDA where ONNX Runtime was built with it, and then it is an error if no GPU can be used; else the CPU."""
    CPU = "cpu"
    CUDA = "cuda"
    ANY = "any"
    """CUDA if a GPU can be used, else the CPU, for those models that can do without."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Knobs of `worker.engine.load`."""

    device: Device = Device.AUTO
    threads: int = 0
    """Threads of one model run; 0 lets ONNX Runtime take one for each physical core."""
    context_tokens_max: int = 2048
    """The longest prompt and answer together, or the model's context if that is less; longer prompts are refused."""
    kv_bytes_max: int = 0
    """Memory for keys and values; 0 takes half of what is free on a CPU, where it is taken as it is touched, and all
    that is free on a GPU.
    """
    slots_max: int = 0
    """The most sequences written at once; 0 takes 64 on a CPU and 256 on a GPU."""
    stages: int = 4
    """How many beginnings of prompts are kept for those to come that begin alike; int8 and bf16 have a number of
    their own.
    """
    chunk_tokens: int = 512
    """The most tokens of prompts computed at once; on a GPU with pages at least 8,192."""
