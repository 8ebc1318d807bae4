"""A model worker whose engine answers at once: everything of `worker` runs, the template, the tokenizer and the
pump, but no model. `benchmarks.ledger` starts it as a process of its own."""

import os
import sys
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from jobs import logs
from jobs.settings import Settings
from worker import engine, process
from worker.engine import Completion, EngineSettings, FinishReason, Progress, Prompt
from worker.model import ModelFolder

ANSWER = tuple(range(1000, 1008))  # eight tokens


class FakeEngine:
    """What the pump and the process use of an engine; each prompt gets the tokens of `answer`."""

    answer = ANSWER
    slots = 64
    context_tokens = 2048
    is_alive = True
    progress = Progress()

    def submit(self, prompt: Prompt) -> Future[list[Completion]]:
        """A future that is answered already."""
        future: Future[list[Completion]] = Future()
        future.set_result([Completion(self.answer, FinishReason.STOP, len(prompt.token_ids), 0, len(self.answer))])
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def load(_folder: ModelFolder, _settings: EngineSettings | None = None) -> FakeEngine:
    return FakeEngine()


def main() -> int:
    engine.load = load  # type: ignore[assignment]
    settings = Settings.read(os.environ)
    logs.configure(settings.log_level)
    return process.serve(settings, model=sys.argv[1], is_io=False)


if __name__ == "__main__":
    raise SystemExit(main())
