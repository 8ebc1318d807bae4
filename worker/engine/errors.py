"""What the engine refuses, and how it fails: errors with numbers, mapped to HTTP codes elsewhere."""


class EngineError(Exception):
    """Any reason for which the engine gives no completion."""


class PromptRefused(EngineError):
    """This prompt can never be answered by this engine; others are not concerned."""


class PromptTooLong(PromptRefused):
    """The prompt leaves no room for a single token of answer."""

    def __init__(self, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(f"the prompt has {prompt_tokens} tokens; this engine holds {context_tokens}, answer included")
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class NothingToSample(EngineError):
    """No token was left to choose: every one is masked, or the model gave NaN for this sequence."""


class EngineStopped(EngineError):
    """The engine takes no more prompts, or was stopped before this one was answered."""


class EngineFailed(EngineError):
    """The runner failed: every prompt in flight is lost and the engine is dead."""


class OutOfSlots(EngineError):
    """The memory granted for the KV cache does not hold a single slot."""

    def __init__(self, slot_bytes: int, kv_bytes_max: int) -> None:
        super().__init__(
            f"one slot of the KV cache takes {slot_bytes:,} bytes, more than the {kv_bytes_max:,} granted; "
            "grant more memory or shorten the context"
        )
        self.slot_bytes = slot_bytes
        self.kv_bytes_max = kv_bytes_max


class OutOfMemory(EngineError):
    """A step needed more memory than there is. It did not happen; a smaller one may."""


class OutOfBlocks(EngineError):
    """The KV cache has fewer free blocks than a sequence needs."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"the KV cache has {free} free blocks, {wanted} were wanted")
        self.wanted = wanted
        self.free = free
