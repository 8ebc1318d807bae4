"""What it costs that answers must follow a JSON schema: `python -m benchmarks.structured`, after `gristmill models add
smollm2-135m`.

The same prompts are answered freely and within a schema, with answers of the same length: freely each goes on for as
many tokens as it takes, and the schema asks for an array longer than that. The runs take turns, so that a machine
that grows slower slows both.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from llguidance import LLMatcher

from worker import model
from worker.chat import Chat, grammar
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
    asked = parser.parse_args()
    folder = model.add("smollm2-135m", models_dir=asked.models)
    chat = Chat(folder, context_tokens=1024, fingerprint="benchmark")
    waits, takes, computes = list[float](), list[float](), list[float]()
    free = [_prompt(chat, number, asked.tokens) for number in range(ROWS)]
    within = [_clocked(_prompt(chat, number, asked.tokens, SCHEMA), waits, takes) for number in range(ROWS)]
    _on_the_clock(computes)
    with load(folder, EngineSettings(context_tokens_max=1024, slots_max=ROWS)) as engine:
        _seconds(engine, free)
        rounds = [_round(engine, free, within) for _ in range(asked.rounds)]
    print(f"overhead     {median(two / one for one, two in rounds) - 1:+.1%}")
    for name, times in (("waited for", waits), ("taken", takes), ("computed", computes)):
        print(f"{name:12} {sum(times) / len(waits) * 1e6:6.0f} us a token, at most {max(times) * 1e3:.1f} ms")


def _prompt(chat: Chat, number: int, tokens: int, schema: dict[str, object] | None = None) -> Prompt:
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
    """Time the work of the pool."""
    find = grammar._allowed  # noqa: SLF001

    def timed(matcher: LLMatcher) -> Mask:
        began = perf_counter()
        mask = find(matcher)
        computes.append(perf_counter() - began)
        return mask

    grammar._allowed = timed  # noqa: SLF001


def _round(engine: Engine, free: list[Prompt], within: list[Prompt]) -> tuple[float, float]:
    seconds = _seconds(engine, free), _seconds(engine, within)
    print(f"free {seconds[0]:.2f} s, json_schema {seconds[1]:.2f} s", flush=True)
    return seconds


def _seconds(engine: Engine, prompts: list[Prompt]) -> float:
    began = perf_counter()
    completions = [future.result() for future in [engine.submit(prompt) for prompt in prompts]]
    seconds = perf_counter() - began
    lengths = {len(one.token_ids) for [one] in completions}
    assert lengths == {prompts[0].tokens_max}, "answers of other lengths say nothing"
    return seconds


if __name__ == "__main__":
    main()
