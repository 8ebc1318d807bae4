"""Any order of claims, flushes, losses, cancels, expiries and ends, on the real statements, leaves a sound ledger.

And a search that would miss a broken statement proves nothing: each that is broken on purpose is found.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import IntegrityError

from jobs import audit, batches, database, export, leases, poison, results
from jobs.errors import Conflict
from jobs.leases import Lease
from jobs.states import TERMINAL
from tests.faults.system import LENGTH
from tests.jobs import making

LINES = [making.line(f"r{n}") for n in range(1, 8)]


class Ledger(RuleBasedStateMachine):
    """One batch of seven lines in chunks of four and three, and three workers that may come back from the dead.

    The model of it is small: which answer was stored first for each line, and that nothing changes after a seal.
    """

    engine: Engine
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        making.forget_batches(self.engine)
        self.batch = making.ingest(self.engine, LINES)
        self.owners = [making.worker(self.engine) for _ in range(3)]
        self.answers: dict[int, str] = {}
        self.flushes = 0
        self.sealed: list[tuple[int, str]] | None = None

    def do(self, work: Callable[[Connection], object]) -> object:
        return database.run(self.engine, work)

    @initialize(target=held)
    def begin(self) -> Lease:
        return making.claim(self.engine, self.batch, self.owners[0])[0]

    @rule(target=held, worker=st.integers(0, 2))
    def claim(self, worker: int) -> Any:
        return multiple(*making.claim(self.engine, self.batch, self.owners[worker]))

    @rule(lease=held, lines=st.sets(st.integers(1, 7), min_size=1), is_ok=st.booleans())
    def flush(self, lease: Lease, lines: set[int], is_ok: bool) -> None:
        """Of a lease held now or lost long ago, for lines of it and others."""
        self.flushes += 1
        body = f'{{"flush":{self.flushes}}}'
        stored = making.results(sorted(lines), status=200 if is_ok else 500, body=body)
        state = self.do(lambda c: results.flush(c, lease, stored))
        if state is not None:
            for line_no in lines & set(lease.line_numbers):
                self.answers.setdefault(line_no, body)

    @rule(lease=held)
    def release(self, lease: Lease) -> None:
        self.do(lambda c: leases.release(c, lease))

    @rule(times=st.integers(1, 2))
    def lose_all(self, times: int) -> None:
        """Every lease runs out, and the sweeper comes, once or twice."""
        self.do(lambda c: c.execute(text("UPDATE chunk SET deadline = now() - interval '1 s' WHERE state = 'leased'")))
        for _ in range(times):
            self.do(sweep)
        self.do(lambda c: c.execute(text("UPDATE chunk SET not_before = now()")))
        for line_no, body in self.stored():
            if "worker_crashed" in body:
                self.answers.setdefault(line_no, body)

    @rule()
    def close(self) -> None:
        self.do(lambda c: batches.close_if_answered(c, self.batch.id))
        self.note_seal()

    @rule()
    def cancel(self) -> None:
        try:
            self.do(lambda c: batches.cancel(c, self.batch.project_id, self.batch.public_id))
        except Conflict:
            assert making.fetch(self.engine, self.batch).state in TERMINAL
        self.note_seal()

    @rule()
    def expire(self) -> None:
        self.do(lambda c: c.execute(text("UPDATE batch SET expires_at = now() WHERE state = 'in_progress'")))
        self.do(batches.expire)
        self.note_seal()

    @precondition(lambda self: self.sealed is not None)
    @rule(worker=st.integers(0, 2))
    def finish(self, worker: int) -> None:
        export.finalize(self.engine, self.batch.id, owner=self.owners[worker], settings=making.SETTINGS)

    def stored(self) -> list[tuple[int, str]]:
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT line_no, body FROM result ORDER BY line_no"))
            return [(row[0], row[1]) for row in rows]

    def note_seal(self) -> None:
        if self.sealed is None and making.fetch(self.engine, self.batch).state != "in_progress":
            self.sealed = self.stored()

    @invariant()
    def the_judge_finds_nothing(self) -> None:
        assert list(audit.faults(self.engine, making.SETTINGS)) == []

    @invariant()
    def the_first_answer_stays(self) -> None:
        assert dict(self.stored()) == self.answers

    @invariant()
    def a_seal_holds(self) -> None:
        assert self.sealed is None or self.stored() == self.sealed


def sweep(connection: Connection) -> None:
    """As the sweeper's duty does it."""
    poison.isolate(connection, silent_seconds=60)
    leases.sweep(connection, silent_seconds=60)


def search(ledger: Engine, examples: int, *, is_repeatable: bool = False) -> None:
    """Look for an order of steps that breaks a promise; AssertionError tells one."""
    machine = type("Searched", (Ledger,), {"engine": ledger})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=14,
            deadline=None,
            derandomize=is_repeatable,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_order_of_steps_breaks_a_promise(ledger: Engine) -> None:
    search(ledger, examples=25 * LENGTH)


FENCE = "AND epoch = %(epoch)s AND owner = %(owner)s AND state = 'leased'"
FENCE_AGAIN = "AND c.epoch = %(epoch)s AND c.owner = %(owner)s AND c.state = 'leased'"
NO_FENCE = "AND CAST(%(epoch)s AS int) > 0 AND CAST(%(owner)s AS uuid) IS NOT NULL"
FLUSH, RELEASE = "INSERT INTO result", "UPDATE chunk SET state = 'ready'"
SEAL, CLOSE = "UPDATE chunk SET state = 'void'", "outcome = 'completed'"
# What of which statement is replaced by what.
BROKEN: dict[str, list[tuple[str, str, str]]] = {
    "a flush without its fence": [(FLUSH, FENCE, NO_FENCE), (FLUSH, FENCE_AGAIN, "")],
    "a flush that counts what was sent, not what was stored": [
        (FLUSH, "FROM stored)", ("FROM json_to_recordset(CAST(%(results)s AS json)) AS x(ok bool, prompt_tokens int, "
                                 "cached_tokens int, completion_tokens int, reasoning_tokens int))")),
    ],
    "a flush that does not ask the state": [
        (FLUSH, FENCE, "AND epoch = %(epoch)s AND CAST(%(owner)s AS uuid) IS NOT NULL"),
        (FLUSH, FENCE_AGAIN, "AND c.epoch = %(epoch)s"),
    ],
    "a release without its fence": [(RELEASE, FENCE, NO_FENCE)],
    "a seal that forgets what is leased": [(SEAL, "state IN ('ready', 'leased')", "state = 'ready'")],
    "an end that waits for nothing": [
        (CLOSE, "AND NOT EXISTS (SELECT 1 FROM chunk WHERE batch_id = %(id)s AND state = 'ready')", ""),
        (CLOSE, "AND NOT EXISTS (SELECT 1 FROM chunk WHERE batch_id = %(id)s AND state = 'leased')", ""),
    ],
}  # fmt: skip


@contextmanager
def broken(ledger: Engine, changes: list[tuple[str, str, str]]) -> Iterator[None]:
    """Statements go to the database changed."""
    done = set()

    def change(_c: object, _u: object, statement: str, parameters: object, *_: object) -> tuple[str, object]:
        for kind, right, wrong in changes:
            if kind in statement and right in statement:
                done.add(right)
                statement = statement.replace(right, wrong)
        return statement, parameters

    event.listen(ledger, "before_cursor_execute", change, retval=True)
    yield
    event.remove(ledger, "before_cursor_execute", change)
    assert done == {right for _, right, _ in changes}, "the statement was not changed"


@pytest.mark.parametrize("name", BROKEN)
def test_a_statement_that_is_broken_on_purpose_is_found(ledger: Engine, name: str) -> None:
    with broken(ledger, BROKEN[name]), pytest.raises((AssertionError, IntegrityError)):
        search(ledger, examples=300, is_repeatable=True)
