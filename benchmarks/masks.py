"""What grammars cost the engine's own thread: `python -m benchmarks.masks`, after `gristmill models add smollm2-135m`.

Steps of 32 rows without a model, over logits that are made up: some 200 tokens stand out of each row. In processor time
of the thread that draws, so that other work on the machine says little.
"""

import argparse
from pathlib import Path
from time import sleep, thread_time
from typing import Final

import numpy as np

from benchmarks.structured import ROWS, SCHEMA, prompt_of
from worker import model
from worker.chat import Chat
from worker.engine import next_token
from worker.engine.sequence import Sequence
from worker.engine.softmax import Logits
from worker.engine.ticket import open_ticket

CONTEXT_TOKENS: Final = 1024
TOKENS: Final = 500
LIKELY: Final = 200
STEP_SECONDS: Final = 0.03
"""What a model would take, in which masks are found."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(".gristmill/models"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    folder = model.open_named("smollm2-135m", asked.models)
    chat = Chat(folder, context_tokens=CONTEXT_TOKENS, fingerprint="benchmark")
    logits = _logits(folder.spec.vocabulary)
    for _ in range(asked.rounds):
        for name, schema in (("free", None), ("json_schema", SCHEMA)):
            rows = [_sequence(chat, number, schema, folder.spec.vocabulary) for number in range(ROWS)]
            seconds = sum(_step(np.roll(logits, 977 * step, axis=1), rows) for step in range(asked.steps))
            tokens = sum(row.output_tokens for row in rows)
            print(f"{name:12} {seconds / asked.steps * 1e3:.1f} ms a step, {tokens / asked.steps:.1f} tokens")


def _logits(vocabulary: int) -> Logits:
    random = np.random.default_rng(0)
    logits = (random.normal(size=(ROWS, vocabulary)) * 2.5 - 5).astype(np.float32)
    for row in logits:
        row[random.integers(0, vocabulary, LIKELY)] += random.uniform(3, 14, LIKELY)
    return logits


def _sequence(chat: Chat, number: int, schema: dict[str, object] | None, vocabulary: int) -> Sequence:
    prompt = prompt_of(chat, number, TOKENS, schema)
    return open_ticket(prompt, context_tokens=CONTEXT_TOKENS, vocabulary=vocabulary).sequences[0]


def _step(logits: Logits, rows: list[Sequence]) -> float:
    sleep(STEP_SECONDS)
    began = thread_time()
    errors = next_token.advance(logits, rows)
    seconds = thread_time() - began
    assert not any(errors), errors
    return seconds


if __name__ == "__main__":
    main()
