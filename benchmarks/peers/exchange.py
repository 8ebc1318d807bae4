"""What a comparison hands to an engine's process, and what that process hands back: two JSON files.

Each engine has a runner beside this file, a script that is started in that engine's own environment and uses
nothing but its engine, this module and the standard library.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Protocol

Ids = list[int]

SHARED_TOKENS_MIN = 32
"""Below it there is no prefix worth a thought."""


@dataclass(frozen=True, slots=True)
class Task:
    """One workload for one fresh process.

    Prompt i is token ids, to be answered greedily with exactly `output_tokens[i]` tokens, whatever they are.
    `started` is `time.monotonic()` of just before the process was made: one clock for the whole machine.
    """

    model: Path
    threads: int
    started: float
    warmup: Ids
    prompts: list[Ids]
    output_tokens: list[int]

    @property
    def context_tokens(self) -> int:
        """The longest prompt and answer together."""
        return max(len(prompt) + wanted for prompt, wanted in zip(self.prompts, self.output_tokens, strict=True))

    @property
    def has_shared_prefix(self) -> bool:
        """All prompts begin with the same text."""
        beginnings = {tuple(prompt[:SHARED_TOKENS_MIN]) for prompt in self.prompts}
        return len(beginnings) == 1


@dataclass(frozen=True, slots=True)
class Report:
    """What one process did: `outputs` are the ids of each answer, in the prompts' order.

    `first_token_seconds` runs from the start of the process, with the model on disk, to the first token of a
    short prompt; `run_seconds` from the workload's first prompt going in to its last token coming out.
    """

    first_token_seconds: float
    run_seconds: float
    outputs: list[Ids]
    notes: dict[str, float]


class Runner(Protocol):
    """An engine with its model loaded, given its task when it is made."""

    def answer(self, prompts: Sequence[Ids], output_tokens: Sequence[int]) -> list[Ids]:
        """The ids of each answer, in the prompts' order; all are handed over at once."""
        ...

    def notes(self) -> dict[str, float]:
        """Figures of its own about the last call of `answer`."""
        ...


class Load(Protocol):
    """Makes a runner."""

    def __call__(self, task: Task) -> Runner: ...


def run(load: Load) -> None:
    """The life of a runner's process: load, write one token, answer the workload against the clock, report."""
    task, report_path = _arguments()
    runner = load(task)
    runner.answer([task.warmup], [1])
    first_token_seconds = monotonic() - task.started
    began = monotonic()
    outputs = runner.answer(task.prompts, task.output_tokens)
    run_seconds = monotonic() - began
    report = Report(first_token_seconds, run_seconds, outputs, runner.notes())
    report_path.write_text(json.dumps(asdict(report)))


def _arguments() -> tuple[Task, Path]:
    parser = argparse.ArgumentParser(description="answer one workload with one engine")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--started", type=float, required=True)
    given = parser.parse_args()
    work = json.loads(given.workload.read_text())
    task = Task(given.model, given.threads, given.started, work["warmup"], work["prompts"], work["output_tokens"])
    return task, given.report
