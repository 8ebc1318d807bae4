"""What it costs to draw the next token of 64 rows: `python -m benchmarks.sampling`. No model is needed.

The logits are made up, with the spread and the size that those of SmolLM2-135M-Instruct have.
"""

from time import perf_counter
from typing import Final

import numpy as np

from worker.engine import Prompt, Sampling, next_token
from worker.engine.softmax import Logits
from worker.engine.ticket import open_ticket

ROWS: Final = 64
VOCABULARY: Final = 49_152
STEPS: Final = 15

DRAWS: Final = {
    "greedy": Sampling(1, temperature=0),
    "temperature 0.8": Sampling(1, temperature=0.8),
    "temperature 0.8, top_p 0.9": Sampling(1, temperature=0.8, top_p=0.9),
    "temperature 1.5, top_p 0.95": Sampling(1, temperature=1.5, top_p=0.95),
    "temperature 0.7, top_p 0.9, top_k 40": Sampling(1, temperature=0.7, top_p=0.9, top_k=40),
    "min_p 0.05": Sampling(1, min_p=0.05),
    "greedy, frequency and presence penalty": Sampling(1, temperature=0, frequency_penalty=0.1, presence_penalty=0.1),
    "greedy, repetition penalty": Sampling(1, temperature=0, repetition_penalty=1.1),
    "greedy, 300 biases": Sampling(1, temperature=0, logit_bias=tuple((token_id, 1.0) for token_id in range(300))),
}


def main() -> None:
    random = np.random.default_rng(0)
    logits = (random.normal(size=(ROWS, VOCABULARY)) * 3.5).astype(np.float32)
    for name, sampling in DRAWS.items():
        print(f"{name:40} {_milliseconds(logits, sampling):6.1f} ms")
    for top in (0, 20):
        print(f"{f'greedy, log-probabilities, top {top}':40} {_milliseconds(logits, DRAWS['greedy'], top):6.1f} ms")


def _milliseconds(logits: Logits, sampling: Sampling, top_logprobs: int | None = None) -> float:
    """The median of one step of all rows, each after a prompt of 300 tokens."""
    prompt = Prompt(range(300), sampling, tokens_max=STEPS, choices=ROWS, top_logprobs=top_logprobs)
    choices = open_ticket(prompt, context_tokens=2048, vocabulary=VOCABULARY).sequences
    seconds = []
    for _ in range(STEPS):
        step = logits.copy()
        began = perf_counter()
        outcomes = next_token.advance(step, choices)
        seconds.append(perf_counter() - began)
        assert not any(outcomes)
    return float(np.median(seconds)) * 1000


if __name__ == "__main__":
    main()
