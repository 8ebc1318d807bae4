"""What it costs that answers must follow a JSON schema: `python -m benchmarks.structured`, after `gristmill models add
smollm2-135m`.

The same prompts are answered freely and within a schema, with answers of the same length: freely each goes on for as
many tokens as it takes, and the schema asks for an array longer than that. The runs take turns, so that a machine
that grows slower slows both. Where other work disturbs them, processor time says more, with `--threads 1`: more threads
of ONNX Runtime burn some while they wait for each other.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Final

from worker import model
from worker.chat import Chat
from worker.chat.masks import NextMask
from worker.engine import Engine, EngineSettings, Prompt, Watcher, load
from worker.engine.sampling import Mask

ROWS: Final = 32
WHEN: Final = datetime(2026, 1, 1, tzinfo=UTC)

ITEM: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["happy", "hungry", "asleep"]},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    },
    "required": ["name", "age", "mood", "friends"],
    "additionalProperties": False,
}
SCHEMA: Final = {"type": "array", "items": ITEM, "minItems": 100}


@dataclass(frozen=True, slots=True)
class Run:
    """What it took to answer all prompts once."""

    seconds: float
    processor_seconds: float
    outside_seconds: float
    """Of the engine's thread, outside ONNX Runtime."""
    steps: int


class Clock:
    """A watcher on the clock: how long the engine waited for masks, and for tokens to be taken."""

    def __init__(self, watcher: Watcher, waits: list[float], takes: list[float]) -> None:
        self._watcher, self._waits, self._takes = watcher, waits, takes

    def mask(self) -> Mask | None:
        began = perf_counter()
        mask = self._watcher.mask()
        self._waits.append(perf_counter() - began)
        return mask

    def accept(self, token_id: int) -> bool:
        began = perf_counter()
        goes_on = self._watcher.accept(token_id)
        self._takes.append(perf_counter() - began)
        return goes_on

    def forced(self) -> Sequence[int]:
        return self._watcher.forced()

    def finish(self) -> None:
        self._watcher.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(".gristmill/models"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime")
    asked = parser.parse_args()
    folder = model.add("smollm2-135m", models_dir=asked.models)
    chat = Chat(folder, context_tokens=1024, fingerprint="benchmark")
    waits, takes, computes = list[float](), list[float](), list[float]()
    free = [prompt_of(chat, number, asked.tokens) for number in range(ROWS)]
    within = [_clocked(prompt_of(chat, number, asked.tokens, SCHEMA), waits, takes) for number in range(ROWS)]
    _on_the_clock(computes)
    with load(folder, EngineSettings(threads=asked.threads, context_tokens_max=1024, slots_max=ROWS)) as engine:
        _run(engine, free)
        rounds = [_round(engine, free, within) for _ in range(asked.rounds)]
    print(f"overhead     {_overhead([[run.seconds for run in runs] for runs in rounds])} of time")
    print(f"overhead     {_overhead([[run.processor_seconds for run in runs] for runs in rounds])} of processor time")
    tokens = ROWS * asked.tokens
    for name, runs in zip(("free", "json_schema"), zip(*rounds, strict=True), strict=True):
        outside = min(run.outside_seconds for run in runs)
        print(f"{name:12} {outside / tokens * 1e6:6.0f} us a token outside ONNX Runtime, {runs[0].steps} steps")
    written = tokens * asked.rounds
    print(f"forced       {1 - len(waits) / written:.0%} of all tokens")
    for name, times in (("waited for", waits), ("taken", takes), ("computed", computes)):
        print(f"{name:12} {sum(times) / written * 1e6:6.0f} us a token, at most {max(times) * 1e3:.1f} ms")


def _overhead(rounds: list[list[float]]) -> str:
    fastest = [min(times) for times in zip(*rounds, strict=True)]
    ratio = median(within / free for free, within in rounds)
    return f"{ratio - 1:+.1%} in the median, {fastest[1] / fastest[0] - 1:+.1%} between the least of each,"


def prompt_of(chat: Chat, number: int, tokens: int, schema: dict[str, object] | None = None) -> Prompt:
    form = {} if schema is None else {"structured_outputs": {"json": schema}}
    content = f"List cats number {number} to {number + 100} as a JSON array of {json.dumps(ITEM)}"
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0.8,
        **form,
    }
    return chat.prompt(body, seed_text=str(number), created=WHEN).prompt


def _clocked(prompt: Prompt, waits: list[float], takes: list[float]) -> Prompt:
    watch = prompt.watch
    assert watch is not None
    return replace(prompt, watch=lambda choice: Clock(watch(choice), waits, takes))


def _on_the_clock(computes: list[float]) -> None:
    """Time how masks are found, by whichever thread."""
    find = NextMask.find

    def timed(mask: NextMask) -> Mask:
        began, was_found = perf_counter(), mask._found is not None  # noqa: SLF001
        found = find(mask)
        if not was_found:
            computes.append(perf_counter() - began)
        return found

    NextMask.find = timed  # type: ignore[assignment, method-assign]


def _round(engine: Engine, free: list[Prompt], within: list[Prompt]) -> tuple[Run, Run]:
    runs = _run(engine, free), _run(engine, within)
    told = [f"{run.seconds:.2f} s ({run.processor_seconds:.2f} s of a processor)" for run in runs]
    print(f"free {told[0]}, json_schema {told[1]}", flush=True)
    return runs


def _run(engine: Engine, prompts: list[Prompt]) -> Run:
    before, began, began_processor = engine.progress, perf_counter(), process_time()
    completions = [future.result() for future in [engine.submit(prompt) for prompt in prompts]]
    seconds, processor_seconds = perf_counter() - began, process_time() - began_processor
    lengths = {len(one.token_ids) for [one] in completions}
    assert lengths == {prompts[0].tokens_max}, "answers of other lengths say nothing"
    while engine.progress.running:  # the last step is counted after its answers are handed out
        sleep(0.001)
    after = engine.progress
    outside = after.busy_seconds - before.busy_seconds - (after.runner_seconds - before.runner_seconds)
    return Run(seconds, processor_seconds, outside, after.steps - before.steps)


if __name__ == "__main__":
    main()
