"""Counters of an engine's life, read from other threads: heartbeat, watchdog, benchmarks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """A snapshot; the engine's thread puts a new one in place after each step. Counts run from the start.
    `prompt_tokens` are those computed as prompts are: what was there already is left out, what was forced before the
    first draw is among them, and among `output_tokens` too.
    `runner_seconds` is the part of `busy_seconds` spent in the runner; the rest is scheduling, sampling and
    watchers. `beat_at` (of `time.monotonic`) is when the engine last woke or ended a step: old while `waiting
    + running > 0` means that it hangs.
    """

    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    busy_seconds: float = 0.0
    runner_seconds: float = 0.0
    waiting: int = 0
    running: int = 0
    beat_at: float = 0.0
