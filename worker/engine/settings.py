"""What an operator may choose about one engine."""

from dataclasses import dataclass
from enum import StrEnum


class Device(StrEnum):
    """Where the model runs."""

    AUTO = "auto"
    """CUDA where ONNX Runtime offers it, else the CPU."""
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Knobs of `worker.engine.load`.

    The KV cache is a number of slots of equal length. Their length is the
    model's context or `context_tokens_max`, whichever is less; their number is what fits into `kv_bytes_max`,
    at most `slots_max`. On a CPU the memory is taken as it is touched.
    """

    device: Device = Device.AUTO
    threads: int = 0
    """Threads of one model run; 0 lets ONNX Runtime take one for each physical core."""
    context_tokens_max: int = 2048
    """The longest prompt and answer together; longer prompts are refused."""
    kv_bytes_max: int = 4 * 2**30
    """Memory for keys and values; it decides how many sequences are written at once."""
    slots_max: int = 64
    """The most sequences written at once."""
    chunk_tokens: int = 512
    """The longest piece of one prompt computed at once."""
    step_tokens: int = 1024
    """The most prompt tokens in one step; more lets more short prompts share a run."""
