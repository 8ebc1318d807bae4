"""What a person sees: a live bar on a terminal, plain lines elsewhere; knows nothing of how work is done."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn

from jobs.contract.batch import Batch

LINE_SECONDS = 5.0
NARROW_COLUMNS = 72  # where less than this is left, the numbers stand without the bar


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a batch goes, measured from when we first saw it run. Times are monotonic seconds."""

    begun: float
    lines: int
    tokens: int

    def tokens_per_second(self, now: float, tokens: int) -> float:
        """Tokens written a second."""
        return (tokens - self.tokens) / (now - self.begun) if now > self.begun else 0.0

    def seconds_left(self, now: float, lines: int, total: int) -> float | None:
        """Until the last line; None before the first one was answered."""
        if lines <= self.lines or now <= self.begun:
            return None
        return (total - lines) * (now - self.begun) / (lines - self.lines)


class Display(Protocol):
    """Shows a batch that runs."""

    def show(self, batch: Batch) -> None:
        """The batch as it is now."""

    def say(self, sentence: str) -> None:
        """Something that happened beside it."""


class Bar:
    """One live line at the foot of a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None, count="starting", facts="")
        self._facts = _Facts()

    def show(self, batch: Batch) -> None:
        counts, status = batch.request_counts, batch.status.replace("_", " ")
        lines = counts.completed + counts.failed
        self._progress.update(
            self._task,
            description=status,
            completed=lines,
            total=counts.total or None,
            count=f"{lines}/{counts.total} lines" if counts.total else status,
            facts=self._facts.of(batch, time.monotonic()),
        )

    def say(self, sentence: str) -> None:
        self._progress.console.print(sentence, highlight=False, markup=False)


class Lines:
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self._facts = _Facts()
        self._said_at = 0.0
        self._status = ""

    def show(self, batch: Batch) -> None:
        now = time.monotonic()
        facts = self._facts.of(batch, now)
        if batch.status == self._status and now < self._said_at + LINE_SECONDS:
            return
        self._said_at, self._status = now, batch.status
        counts = batch.request_counts
        lines = f": {counts.completed + counts.failed}/{counts.total} lines{facts}" if counts.total else ""
        self.say(f"{_status(batch)}{lines}")

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201


def _status(batch: Batch) -> str:
    said = batch.status.replace("_", " ")
    return f"{said}, waiting for {batch.waiting_for}" if batch.waiting_for else said


class _Facts:
    """The numbers behind the bar."""

    def __init__(self) -> None:
        self._pace: Pace | None = None

    def of(self, batch: Batch, now: float) -> str:
        counts, tokens = batch.request_counts, batch.usage.output_tokens
        lines = counts.completed + counts.failed
        facts = f", {counts.failed} failed" if counts.failed else ""
        if batch.status != "in_progress":
            return facts
        if self._pace is None:
            self._pace = Pace(now, lines, tokens)
        if speed := self._pace.tokens_per_second(now, tokens):
            facts += f", {speed:,.0f} tokens/s"
        left = self._pace.seconds_left(now, lines, counts.total)
        return facts if left is None else f"{facts}, {duration(left)} left"


@contextmanager
def display() -> Iterator[Display]:
    """A bar on a terminal, lines elsewhere; both on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    with Progress(*_columns(console.width), console=console) as progress:
        yield Bar(progress)


def _columns(width: int) -> tuple[ProgressColumn, ...]:
    """What the live line is made of on a terminal of `width` characters."""
    if width < NARROW_COLUMNS:
        # One column: what is too much is cut off its end, never off the count.
        return (TextColumn("{task.fields[count]}{task.fields[facts]}"),)
    return (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("lines{task.fields[facts]}"),
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, each as wide as its widest."""
    shown = [[cell.replace("\n", " ") for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[place]) for row in shown) for place in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown
    )


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(size_bytes: int) -> str:
    """`540 MB`, as file managers count."""
    amount = float(size_bytes)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
