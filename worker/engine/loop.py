"""Carries out one step after the other: plans, runs, reads it. One thread owns it; it knows no locks."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import ParamSpec, TypeVar

import numpy as np

from worker.engine import sampling, scheduler
from worker.engine.errors import NothingToSample
from worker.engine.progress import Progress
from worker.engine.prompt import Watcher
from worker.engine.runner import Runner, Span
from worker.engine.sampling import Logits
from worker.engine.scheduler import Admission, Budget, Decode, Move, Partial, Piece, Prefill, Waiting
from worker.engine.sequence import Sequence as Choice
from worker.engine.ticket import Ticket
from worker.engine.waiting import WaitingLine

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Seat:
    """Who sits in a slot."""

    ticket: Ticket
    choice: Choice


@dataclass(slots=True)
class _Begun:
    """A prompt that is being computed in the first of its slots, for all of them."""

    ticket: Ticket
    slots: tuple[int, ...]
    computed: int = 0


class Loop:
    """The prompts that wait, those in slots, and the step that takes them further."""

    def __init__(self, runner: Runner, budget: Budget) -> None:
        self.progress = Progress(beat_at=monotonic())
        self._runner = runner
        self._budget = budget
        self._waiting = WaitingLine()
        self._seats: dict[int, _Seat] = {}
        self._begun: dict[int, _Begun] = {}
        self._runner_seconds = 0.0
        self._prompt_tokens = 0
        self._output_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._seats) or len(self._waiting) > 0

    def add(self, ticket: Ticket) -> None:
        """Let a prompt wait for its slots."""
        self._waiting.add(ticket)

    def beat(self) -> None:
        """Show that the thread is awake, with what it has to do."""
        self.progress = replace(
            self.progress, waiting=len(self._waiting), running=len(self._seats), beat_at=monotonic()
        )

    def step(self) -> None:
        """Compute the next step; an exception out of here is the runner's, and the end of the engine."""
        began = monotonic()
        waiting = (Waiting(ticket.prompt_tokens, ticket.choices_waiting) for ticket in self._waiting)
        match scheduler.plan(waiting, self._partials(), self._seats, self._budget):
            case Prefill() as plan:
                self._prefill(plan)
            case Decode() as plan:
                self._decode(plan)
            case None:
                self._check_idle()
                return
        self._count(began)

    def drop(self, ticket: Ticket, error: BaseException) -> None:
        """Take a prompt out, wherever it is: its future gets the error, unless it was cancelled."""
        self._waiting.remove(ticket)
        self._begun = {slot: begun for slot, begun in self._begun.items() if begun.ticket is not ticket}
        self._seats = {slot: seat for slot, seat in self._seats.items() if seat.ticket is not ticket}
        for choice in ticket.sequences:
            _close_quietly(choice)
        ticket.fail(error)

    def drop_all(self, error: BaseException) -> None:
        """Take every prompt out."""
        for ticket in {*self._waiting, *(seat.ticket for seat in self._seats.values())}:
            self.drop(ticket, error)

    def _partials(self) -> list[Partial]:
        return [Partial(slot, begun.computed, begun.ticket.prompt_tokens) for slot, begun in self._begun.items()]

    def _prefill(self, plan: Prefill) -> None:
        self._enter(plan.admissions)
        logits = self._run(self._runner.prefill, [self._span(piece) for piece in plan.pieces])
        self._prompt_tokens += sum(piece.tokens for piece in plan.pieces)
        ready = [begun for piece in plan.pieces if (begun := self._advance(piece))]
        for begun in ready:
            for slot in begun.slots[1:]:
                self._run(self._runner.copy, begun.slots[0], slot, begun.ticket.prompt_tokens)
        if any(len(begun.slots) > 1 for begun in ready):
            logits = np.repeat(logits, [len(begun.slots) for begun in ready], axis=0)
        if ready:
            self._read(logits, [slot for begun in ready for slot in begun.slots])

    def _decode(self, plan: Decode) -> None:
        for move in plan.moves:
            self._move(move)
        choices = [self._seats[slot].choice for slot in range(plan.rows)]
        token_ids = np.array([choice.token_ids[-1] for choice in choices], dtype=np.int64)
        lengths = np.array([choice.cached_length for choice in choices], dtype=np.int32)
        self._read(self._run(self._runner.decode, token_ids, lengths), range(plan.rows))

    def _enter(self, admissions: Sequence[Admission]) -> None:
        """Seat choices of the first tickets of the line; a ticket leaves it with its last choice."""
        for ticket, admission in zip(list(_take(self._waiting, len(admissions))), admissions, strict=True):
            for slot, choice in zip(admission.slots, ticket.enter(len(admission.slots)), strict=True):
                self._seats[slot] = _Seat(ticket, choice)
            self._begun[admission.slots[0]] = _Begun(ticket, admission.slots)
            if not ticket.choices_waiting:
                self._waiting.remove(ticket)

    def _span(self, piece: Piece) -> Span:
        ticket = self._begun[piece.slot].ticket
        ends_prompt = piece.stop == ticket.prompt_tokens
        return Span(piece.slot, piece.start, ticket.token_ids[piece.start : piece.stop], ends_prompt)

    def _advance(self, piece: Piece) -> _Begun | None:
        """Note that a piece is computed; the prompt, if it was the last one."""
        begun = self._begun[piece.slot]
        begun.computed = piece.stop
        return self._begun.pop(piece.slot) if piece.stop == begun.ticket.prompt_tokens else None

    def _move(self, move: Move) -> None:
        seat = self._seats.pop(move.source)
        self._run(self._runner.copy, move.source, move.target, seat.choice.cached_length)
        self._seats[move.target] = seat

    def _read(self, logits: Logits, slots: Sequence[int]) -> None:
        """Draw and hand out the next token of each slot, whose logits are the rows."""
        seats = [self._seats[slot] for slot in slots]
        for row, seat in enumerate(seats):
            if seat.choice.watcher is not None:
                self._guard(seat.ticket, _mask, seat.choice.watcher, logits[row])
        tokens = sampling.sample(logits, [seat.choice.next_draw for seat in seats])
        for slot, seat, token in zip(slots, seats, tokens.tolist(), strict=True):
            if slot in self._seats:  # its prompt may have failed in this very step
                self._guard(seat.ticket, self._accept, slot, seat, token)

    def _accept(self, slot: int, seat: _Seat, token: int) -> None:
        if token == sampling.NO_TOKEN:
            raise NothingToSample("no token can follow: all are masked, or the model's logits are not numbers")
        self._output_tokens += 1
        seat.choice.accept(token)
        if seat.choice.finish_reason:
            del self._seats[slot]
            seat.choice.close()
            seat.ticket.resolve_if_complete()

    def _guard(self, ticket: Ticket, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call what belongs to one prompt: whatever it raises costs this prompt and no other."""
        try:
            call(*args, **kwargs)
        except Exception as error:  # a watcher is others' code
            logger.warning("prompt failed", exc_info=error)
            self.drop(ticket, error)

    def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the runner, on the clock."""
        began = monotonic()
        try:
            return call(*args, **kwargs)
        finally:
            self._runner_seconds += monotonic() - began

    def _check_idle(self) -> None:
        """With nothing to do, nothing may be held: a slot lost here would be lost for good."""
        if self._seats or self._begun or len(self._waiting):
            raise RuntimeError(f"no step was planned for {self._seats}, {self._begun}, {len(self._waiting)} waiting")

    def _count(self, began: float) -> None:
        now = monotonic()
        self.progress = Progress(
            steps=self.progress.steps + 1,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            busy_seconds=self.progress.busy_seconds + now - began,
            runner_seconds=self._runner_seconds,
            waiting=len(self._waiting),
            running=len(self._seats),
            beat_at=now,
        )


def _mask(watcher: Watcher, logits: Logits) -> None:
    mask = watcher.mask()
    if mask is not None:
        sampling.allow_only(logits, mask)


def _take(tickets: Iterable[Ticket], count: int) -> Iterable[Ticket]:
    return (ticket for ticket, _ in zip(tickets, range(count), strict=False))


def _close_quietly(choice: Choice) -> None:
    try:
        choice.close()
    except Exception as error:  # its prompt has ended already; that error is the one to tell
        logger.warning("watcher failed to finish", exc_info=error)
