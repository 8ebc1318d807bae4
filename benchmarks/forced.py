"""What is saved where a grammar leaves one way on: `python -m benchmarks.forced --rows 1`, after `gristmill models add
smollm2-135m`, and `--model smollm2-135m-fp32` after `gristmill models add smollm2-135m --name smollm2-135m-fp32
--precision fp32`.

Answers with long keys are written twice: as they always are, and by asking the model for every token. The two take
turns. Where other work disturbs them, processor time says more, with `--threads 1`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Final

from worker import model
from worker.chat import Chat
from worker.engine import Completion, Engine, EngineSettings, Prompt, Watcher, load
from worker.engine.sampling import Mask

WHEN: Final = datetime(2026, 1, 1, tzinfo=UTC)
KEYS: Final[dict[str, object]] = {
    "full_name_of_the_customer": {"type": "string", "maxLength": 16},
    "total_amount_of_the_order_in_cents": {"type": "integer", "minimum": 0, "maximum": 99_999},
    "has_been_delivered_to_the_customer": {"type": "boolean"},
    "preferred_method_of_payment": {"enum": ["credit card", "bank transfer", "cash on delivery"]},
    "date_of_the_last_change": {"type": "string", "format": "date"},
}
SCHEMA: Final = {"type": "object", "properties": KEYS, "required": list(KEYS), "additionalProperties": False}


class AskedForAll:
    """A watcher that does not tell what is forced."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def mask(self) -> Mask | None:
        return self._watcher.mask()

    def accept(self, token_id: int) -> bool:
        return self._watcher.accept(token_id)

    def forced(self) -> Sequence[int]:
        return ()

    def finish(self) -> None:
        self._watcher.finish()


@dataclass(frozen=True, slots=True)
class Run:
    """What it took to answer all prompts once."""

    texts: list[tuple[int, ...]]
    seconds: float
    processor_seconds: float
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(".gristmill/models"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    folder = model.open_named(asked.model, asked.models)
    chat = Chat(folder, context_tokens=512, fingerprint="benchmark")
    told = [_prompt(chat, number) for number in range(asked.rows)]
    silent = [replace(prompt, watch=_silent(prompt)) for prompt in told]
    with load(folder, EngineSettings(context_tokens_max=512, slots_max=asked.rows, threads=asked.threads)) as engine:
        _run(engine, told)
        rounds = [(_run(engine, silent), _run(engine, told)) for _ in range(asked.rounds)]
    for name, runs in zip(("asked for all", "forced taken"), zip(*rounds, strict=True), strict=True):
        tokens = sum(map(len, runs[0].texts))
        seconds = f"{min(run.seconds for run in runs):.2f} s"
        processor = f"{min(run.processor_seconds for run in runs) / tokens * 1e3:.1f} ms of a processor a token"
        print(f"{name:14} {tokens} tokens, {runs[0].steps} steps, {seconds} and {processor} at best")
    same = sum(one == other for one, other in zip(rounds[0][0].texts, rounds[0][1].texts, strict=True))
    print(f"the same tokens in {same} of {asked.rows} answers")


def _prompt(chat: Chat, number: int) -> Prompt:
    body = {
        "model": "benchmark",
        "messages": [{"role": "user", "content": f"Invent order number {number}, as JSON."}],
        "max_tokens": 200,
        "temperature": 0.8,
        "structured_outputs": {"json": SCHEMA},
    }
    return chat.prompt(body, seed_text=str(number), created=WHEN).prompt


def _silent(prompt: Prompt) -> Callable[[int], Watcher]:
    watch = prompt.watch
    assert watch is not None
    return lambda choice: AskedForAll(watch(choice))


def _run(engine: Engine, prompts: list[Prompt]) -> Run:
    steps, began, began_processor = engine.progress.steps, perf_counter(), process_time()
    answers: list[list[Completion]] = [future.result() for future in [engine.submit(prompt) for prompt in prompts]]
    seconds, processor_seconds = perf_counter() - began, process_time() - began_processor
    while engine.progress.running:  # the last step is counted after its answers are handed out
        sleep(0.001)
    return Run([one.token_ids for [one] in answers], seconds, processor_seconds, engine.progress.steps - steps)


if __name__ == "__main__":
    main()
