"""Carries out one step after the other: plans, runs, reads it. One thread owns it; it knows no locks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress, islice
from time import monotonic
from typing import ParamSpec, TypeVar

import numpy as np

from worker.engine import next_token, scheduler
from worker.engine.allowance import Allowance
from worker.engine.errors import OutOfMemory
from worker.engine.inside import Computed, Row, Work
from worker.engine.lengths import Lengths
from worker.engine.progress import Progress
from worker.engine.prompt import URGENT
from worker.engine.runner import Runner, Span
from worker.engine.scheduler import Budget, Entrance, Piece, Room, Step, Waiting
from worker.engine.sequence import Sequence as Choice
from worker.engine.stages import Stages, shared
from worker.engine.ticket import Ticket
from worker.engine.waiting import Entry, WaitingLine, entries_of

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Loop:
    """The prompts that wait, those that are computed, the rows, and the step that takes them further."""

    def __init__(self, runner: Runner, budget: Budget) -> None:
        self.progress = Progress(beat_at=monotonic())
        self._runner = runner
        self._allowance = Allowance(budget)
        self._waiting = WaitingLine()
        self._stages = Stages(runner.stages)
        self._lengths = Lengths()
        self._works: list[Work] = []
        self._rows: list[Row] = []
        self._drawn: tuple[next_token.Drawn, list[Row]] | None = None
        """Tokens that are on their way from a device, and whose they are."""
        self._runner_seconds = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self._rows or self._works or self._drawn) or len(self._waiting) > 0

    def add(self, ticket: Ticket) -> None:
        """Let a prompt wait for its rows. What its choices must begin with is computed with it; one that has come to
        its end by that needs no row.
        """
        if not self.has_work:
            self._allowance.restore()
        try:
            _open(ticket.sequences)
        except Exception as error:  # noqa: BLE001  a watcher is others' code
            self._fail(ticket, error)
            return
        output_tokens = sum(choice.output_tokens for choice in ticket.sequences)
        self.progress = replace(self.progress, output_tokens=self.progress.output_tokens + output_tokens)
        for entry in entries_of(ticket):
            self._waiting.add(entry)
        ticket.resolve_if_complete()

    def beat(self) -> None:
        """Show that the thread is awake, with what it has to do."""
        self.progress = replace(self.progress, waiting=len(self._waiting), running=self._running, beat_at=monotonic())

    def step(self) -> None:
        """Compute the next step; an exception out of here is the runner's, and the end of the engine.

        Where tokens are drawn on a device, the step begins before those of the one before are read, and they are read
        before more are drawn: so the device need not wait for anybody, and whatever a token is drawn after is known.
        Who ends with a token that was not known to be the last is in one step too many, and what that gives is not
        read. Where rows must leave for want of room, tokens are read first.
        """
        began = monotonic()
        while (work := self._admit()) is not None:
            self._works.append(work)
        if self._drawn is not None:
            self._remove([number for number, row in enumerate(self._rows) if row.ends_with_next])
        step = scheduler.plan([work.begun for work in self._works], len(self._rows), self._budget)
        if step is None or (self._drawn is not None and self._needed(step) > self._runner.free_tokens):
            self._check_idle()
            self._count(began, output_tokens=self._read())
            return
        self._make_room(step)
        try:
            computed = self._compute(step)
        except OutOfMemory as error:
            self._count(began, output_tokens=self._read())
            self._halve(error)
            return
        output_tokens = self._read() + self._draw(computed)
        self._allowance.count_step()
        self._count(began, steps=1, prompt_tokens=computed.prompt_tokens, output_tokens=output_tokens)

    def drop(self, ticket: Ticket, error: BaseException) -> None:
        """Take a prompt out, wherever it is: its future gets the error, unless it was cancelled."""
        self._waiting.remove(ticket)
        self._works = [work for work in self._works if work.entry.ticket is not ticket]
        self._remove([row for row, seat in enumerate(self._rows) if seat.ticket is ticket])
        for choice in ticket.sequences:
            _close_quietly(choice)
        ticket.fail(error)

    def drop_all(self, error: BaseException) -> None:
        """Take every prompt out."""
        drawn = self._drawn[1] if self._drawn is not None else []
        inside = {row.ticket for row in [*self._rows, *drawn]} | {work.entry.ticket for work in self._works}
        for ticket in inside | {entry.ticket for entry in self._waiting}:
            self.drop(ticket, error)

    @property
    def _budget(self) -> Budget:
        return self._allowance.budget

    @property
    def _running(self) -> int:
        return len(self._rows) + sum(len(work.entry.choices) for work in self._works)

    def _admit(self) -> Work | None:
        """The first of the line gets its stage; choices for which there is no row yet wait on, at the head."""
        entry = next(iter(self._waiting), None)
        if entry is None or self._running >= self._budget.slots or len(self._works) == self._budget.spans_max:
            return None
        expected = entry.tokens_max if entry.is_back else self._lengths.expected(entry.prompt_tokens, entry.tokens_max)
        entrance = self._entrance(entry, expected)
        if entrance is None:
            return None
        begun = entrance.begun
        if entrance.source != begun.stage:
            self._run(self._runner.copy, entrance.source, begun.stage, begun.computed)
        self._stages.hold(begun.stage, entry.token_ids[: begun.computed])
        entering = replace(entry, choices=entry.choices[: begun.choices])
        entry.choices = entry.choices[begun.choices :]
        if not entry.choices:
            self._waiting.pop()
        if entering.choices[0] is entry.ticket.sequences[0] and not entry.is_back:
            entry.ticket.cached_tokens = min(begun.computed, entry.ticket.prompt_tokens)
        return Work(entering, begun, expected)

    def _entrance(self, entry: Entry, expected_tokens: int) -> Entrance | None:
        coming = max((shared(work.entry.token_ids, entry.token_ids) for work in self._works), default=0)
        hits, is_urgent = self._stages.hits(entry.token_ids), entry.ticket.priority <= URGENT
        first = Waiting(entry.prompt_tokens, len(entry.choices), hits, coming, is_urgent)
        ahead = self._stages.hits_ahead(other.token_ids for other in islice(self._waiting, 1, None))
        inside = [work.begun for work in self._works]
        return scheduler.admit(first, ahead, inside, len(self._rows), expected_tokens, self._room(), self._budget)

    def _room(self) -> Room:
        promised = sum(work.expected_tokens * work.begun.choices for work in self._works)
        for row in self._rows:
            tokens_max = row.choice.prompt_tokens + row.choice.tokens_max
            promised += self._lengths.expected(row.length, tokens_max) - row.length
        return Room(self._runner.free_tokens, promised)

    def _make_room(self, step: Step) -> None:
        """Where a step's tokens do not fit, the rows with the least to lose go back to the line."""
        while self._rows and self._needed(step) > self._runner.free_tokens:
            self._send_back(self._cheapest_row())

    def _cheapest_row(self) -> int:
        return min(range(len(self._rows)), key=lambda row: self._rows[row].length)

    def _halve(self, error: OutOfMemory) -> None:
        """Go on with half of what is inside. What leaves is computed again later."""
        self._allowance.halve(self._running, error)
        slots = self._budget.slots
        while self._running > slots and self._works:
            self._waiting.put_first(self._works.pop().entry)
        while self._running > slots:
            self._send_back(self._cheapest_row())

    def _needed(self, step: Step) -> int:
        """What a step takes of the cache, in whole pages."""
        page = self._runner.page_tokens
        pages = 0
        if step.writes:
            pages += sum(-(-(row.length + self._ahead(row) + 1) // page) - -(-row.length // page) for row in self._rows)
        pages += sum(-(-piece.stop // page) * piece.begun.choices for piece in step.pieces if piece.ends_prompt)
        return pages * page

    def _send_back(self, row: int) -> None:
        """Let a choice wait again."""
        seat = self._rows[row]
        self._waiting.put_first(Entry(seat.ticket, [seat.choice], seat.beginning, is_back=True))
        self._remove([row])

    def _compute(self, step: Step) -> Computed:
        """Run a step; on a device it may only have begun."""
        works = {work.begun.stage: work for work in self._works}
        pieces = [(works[piece.begun.stage], piece) for piece in step.pieces]
        spans = [_span(work, piece) for work, piece in pieces]
        written = list(self._rows) if step.writes else []
        self._feed_ahead(written)
        unread = {number for number, row in enumerate(written) if len(row.unfed) > 1}
        logits = self._run(self._runner.step, spans, [row.next_id for row in written], unread)
        for row in written:
            row.fed += 1
        entered, counts = [], []
        for work, piece in pieces:
            work.begun = replace(work.begun, computed=piece.stop)
            self._stages.hold(work.begun.stage, work.entry.token_ids[: piece.stop])
            if piece.ends_prompt:
                rows = self._place(work)
                entered += rows
                counts.append(len(rows))
        computed = [*entered, *(row for number, row in enumerate(written) if number not in unread)]
        if len(entered) > len(counts):
            logits = logits.repeat([*counts, *[1] * (len(computed) - len(entered))], axis=0)
        return Computed(logits, computed, sum(len(span.token_ids) for span in spans))

    def _feed_ahead(self, rows: Sequence[Row]) -> None:
        """Where the runner is the faster for it, take all tokens that a row has into it but the last."""
        for number, row in enumerate(rows):
            if ahead := self._ahead(row):
                self._run(self._runner.feed, number, row.unfed[:ahead])
                row.fed += ahead

    def _ahead(self, row: Row) -> int:
        """How many tokens a row takes before a step, which gives it one more."""
        if row.drawn_at is not None:
            return 0
        is_exact = self._runner.is_exact
        ahead = row.stretch - 1 if is_exact else min(len(row.unfed) - 1, self._budget.chunk_tokens)
        return ahead if ahead > 0 and self._runner.feeds(ahead, row.length) else 0

    def _place(self, work: Work) -> list[Row]:
        """Give each choice of a computed prompt its row."""
        self._works.remove(work)
        entry = work.entry
        forced = entry.prompt_tokens - entry.ticket.prompt_tokens
        entered = [Row(entry.ticket, choice, entry.token_ids, fed=forced) for choice in entry.choices]
        for row in entered:
            number = self._run(self._runner.place, work.begun.stage, entry.prompt_tokens)
            if number != len(self._rows):
                raise RuntimeError(f"the runner counts {number} rows, the engine {len(self._rows)}")
            self._rows.append(row)
        return entered

    def _draw(self, computed: Computed) -> int:
        """Draw the next tokens of those rows that want one. They are handed out at once, and counted, or are on their
        way then.
        """
        logits, rows = computed.logits, [row for row in computed.rows if row.awaits_token]
        if not rows:
            return 0
        if len(rows) < len(computed.rows):
            logits = logits[[row.awaits_token for row in computed.rows]]
        choices = [row.choice for row in rows]
        if isinstance(logits, np.ndarray):
            before = _output_tokens(rows)
            return self._hand_out(rows, next_token.advance(logits, choices)) - before
        drawn = next_token.begin(logits, choices)
        for row, place in zip(rows, drawn.drawing.places.tolist(), strict=True):
            row.drawn_at = place
        self._drawn = drawn, rows
        return 0

    def _read(self) -> int:
        """Wait for what is being drawn, hand it out, and count it. A row that was fed another token than it got in the
        end, since the device was not sure, goes back by that token.
        """
        if self._drawn is None:
            return 0
        (drawn, rows), self._drawn = self._drawn, None
        self._run(drawn.drawing.wait)
        are_left = [row.is_going_on for row in rows]
        left = list(compress(rows, are_left))
        before, known = _output_tokens(left), [len(row.choice.token_ids) for row in rows]
        outcomes = next_token.accept(
            drawn, [row.choice if is_left else None for row, is_left in zip(rows, are_left, strict=True)]
        )
        for row, count, fed in zip(rows, known, drawn.drawing.fed.tolist(), strict=True):
            row.drawn_at = None
            if row.fed > count and row.is_going_on and row.choice.token_ids[count : count + 1] != [fed]:
                self._run(self._runner.rewind, self._rows.index(row))
                row.fed -= 1
        return self._hand_out(left, list(compress(outcomes, are_left))) - before

    def _hand_out(self, written: Sequence[Row], outcomes: Sequence[Exception | None]) -> int:
        """See who has ended with a token: those give their row back. Gives the tokens that all have now."""
        for row, error in zip(written, outcomes, strict=True):
            if error is not None:
                self._fail(row.ticket, error)
            elif row.choice.finish_reason:
                self._lengths.note(len(row.choice.token_ids))
                self._close(row)
        self._remove([number for number, row in enumerate(self._rows) if row.choice.finish_reason])
        for row in written:
            if row.choice.finish_reason:
                row.ticket.resolve_if_complete()
        return _output_tokens(written)

    def _close(self, row: Row) -> None:
        try:
            row.choice.close()
        except Exception as error:  # noqa: BLE001  a watcher is others' code
            self._fail(row.ticket, error)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        """Whatever a prompt's own parts raise costs this prompt and no other."""
        logger.warning("prompt failed", exc_info=error)
        self.drop(ticket, error)

    def _remove(self, rows: Sequence[int]) -> None:
        """Give rows back, the highest first, because the last row takes the number of one that goes."""
        for row in sorted(rows, reverse=True):
            self._run(self._runner.remove, row)
            last = self._rows.pop()
            if row < len(self._rows):
                self._rows[row] = last

    def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the runner, on the clock."""
        began = monotonic()
        try:
            return call(*args, **kwargs)
        finally:
            self._runner_seconds += monotonic() - began

    def _check_idle(self) -> None:
        """With nothing to do, nothing may be held: a row lost here would be lost for good."""
        if self.has_work and self._drawn is None:
            raise RuntimeError(f"no step was planned with {len(self._waiting)} prompts waiting")

    def _count(self, began: float, *, steps: int = 0, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        now, before = monotonic(), self.progress
        self.progress = Progress(
            steps=before.steps + steps,
            prompt_tokens=before.prompt_tokens + prompt_tokens,
            output_tokens=before.output_tokens + output_tokens,
            busy_seconds=before.busy_seconds + now - began,
            runner_seconds=self._runner_seconds,
            waiting=len(self._waiting),
            running=self._running,
            beat_at=now,
        )


def _open(choices: Sequence[Choice]) -> None:
    """Let choices take what they must begin with; those that end by that are closed."""
    for choice in choices:
        choice.open()
        if choice.finish_reason:
            choice.close()


def _span(work: Work, piece: Piece) -> Span:
    token_ids = work.entry.token_ids[piece.start : piece.stop]
    return Span(piece.begun.stage, piece.start, token_ids, ends_prompt=piece.ends_prompt)


def _output_tokens(rows: Sequence[Row]) -> int:
    return sum(row.choice.output_tokens for row in rows)


def _close_quietly(choice: Choice) -> None:
    try:
        choice.close()
    except Exception as error:  # its prompt has ended already; that error is the one to tell
        logger.warning("watcher failed to finish", exc_info=error)
