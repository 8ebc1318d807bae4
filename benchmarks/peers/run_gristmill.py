"""Gristmill's own engine, as a worker loads it: the public interface of `worker.engine` and nothing more."""

from collections.abc import Sequence
from time import monotonic

import exchange
from exchange import Ids, Task

from worker import engine, model


class Gristmill:
    """Greedy sampling and no stop tokens, so that every answer has its full length."""

    def __init__(self, task: Task) -> None:
        self._engine = engine.load(model.open_model(task.model), engine.EngineSettings(threads=task.threads))
        self._engine.start()
        self._notes: dict[str, float] = {}

    def answer(self, prompts: Sequence[Ids], output_tokens: Sequence[int]) -> list[Ids]:
        sampling = engine.Sampling(seed=1, temperature=0)
        before, began = self._engine.progress, monotonic()
        waiting = [
            self._engine.submit(engine.Prompt(prompt, sampling, tokens_max=wanted))
            for prompt, wanted in zip(prompts, output_tokens, strict=True)
        ]
        answers = [future.result()[0] for future in waiting]
        seconds = monotonic() - began
        self._notes = _notes(before, self._engine.progress, seconds)
        self._notes["prompt_tokens_computed"] = sum(a.prompt_tokens - a.cached_tokens for a in answers)
        return [list(answer.token_ids) for answer in answers]

    def notes(self) -> dict[str, float]:
        return self._notes


def _notes(before: engine.Progress, after: engine.Progress, seconds: float) -> dict[str, float]:
    """`busy_share` of the time the engine worked; `outside_share` of that was not spent running the model."""
    busy = after.busy_seconds - before.busy_seconds
    inside = after.runner_seconds - before.runner_seconds
    steps = after.steps - before.steps
    return {
        "busy_share": busy / seconds,
        "outside_share": 1 - inside / busy,
        "steps": steps,
        "tokens_a_step": (after.output_tokens - before.output_tokens) / steps,
    }


if __name__ == "__main__":
    exchange.run(Gristmill)
