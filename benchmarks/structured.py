"""What it costs that answers must follow a JSON schema: `python -m benchmarks.structured`, after `gristmill models add
smollm2-135m`.

The same prompts are answered freely and within a schema, with answers of the same length: freely each goes on for as
many tokens as it takes, and the schema asks for an array longer than that. The runs take turns, so that a machine
that grows slower slows both.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from worker import model
from worker.chat import Chat
from worker.chat.grammar import GrammarWatcher
from worker.engine import Engine, EngineSettings, Prompt, Watcher, load
from worker.engine.sampling import Mask

ROWS: Final = 32
TOKENS: Final = 128
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

    def finish(self) -> None:
        self._watcher.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(".gristmill/models"))
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    folder = model.add("smollm2-135m", models_dir=asked.models)
    chat = Chat(folder, context_tokens=1024, fingerprint="benchmark")
    waits, takes, computes = list[float](), list[float](), list[float]()
    free = [_prompt(chat, number) for number in range(ROWS)]
    within = [_clocked(_prompt(chat, number, SCHEMA), waits, takes) for number in range(ROWS)]
    _on_the_clock(computes)
    with load(folder, EngineSettings(context_tokens_max=1024, slots_max=ROWS)) as engine:
        _seconds(engine, free)
        rounds = [(_seconds(engine, free), _seconds(engine, within)) for _ in range(asked.rounds)]
    for name, seconds in zip(("free", "json_schema"), zip(*rounds, strict=True), strict=True):
        print(
            f"{name:12} {' '.join(f'{one:6.2f}' for one in seconds)} s, {ROWS * TOKENS / median(seconds):6.1f} tokens/s"
        )
    print(f"overhead     {median(two / one for one, two in rounds) - 1:+.1%}")
    for name, times in (("waited for", waits), ("taken", takes), ("computed", computes)):
        print(f"{name:12} {sum(times) / len(waits) * 1e6:6.0f} us a token, at most {max(times) * 1e3:.1f} ms")


def _prompt(chat: Chat, number: int, schema: dict[str, object] | None = None) -> Prompt:
    form = {} if schema is None else {"structured_outputs": {"json": schema}}
    content = f"List cats number {number} to {number + 100} as a JSON array of {json.dumps(ITEM)}"
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS,
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
    """Time the work of the pool."""
    find: Callable[[GrammarWatcher], Mask] = GrammarWatcher._find_next  # noqa: SLF001

    def timed(watcher: GrammarWatcher) -> Mask:
        began = perf_counter()
        mask = find(watcher)
        computes.append(perf_counter() - began)
        return mask

    GrammarWatcher._find_next = timed  # type: ignore[assignment]  # noqa: SLF001


def _seconds(engine: Engine, prompts: list[Prompt]) -> float:
    began = perf_counter()
    completions = [future.result() for future in [engine.submit(prompt) for prompt in prompts]]
    seconds = perf_counter() - began
    assert all(len(one.token_ids) == TOKENS for [one] in completions)
    return seconds


if __name__ == "__main__":
    main()
