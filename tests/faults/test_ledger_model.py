"""Any order of claims, flushes, losses, cancels, expiries and ends, on the real statements, leaves a sound ledger.

And a search that would miss a broken statement proves nothing: each of three that are broken on purpose is found.
"""

from collections.abc import Callable
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
from sqlalchemy import Connection, Engine, text

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
        with self.engine.begin() as connection:
            connection.execute(text("TRUNCATE batch, request, chunk, result, tally, worker, file, file_part"))
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
    search(ledger, examples=20 * LENGTH)


FENCE = "AND epoch = :epoch AND owner = :owner AND state = 'leased'"
BROKEN: dict[str, list[tuple[str, str]]] = {
    "the fence is removed": [
        (FENCE, "AND CAST(:epoch AS int) > 0 AND CAST(:owner AS uuid) IS NOT NULL"),
        ("AND c.epoch = :epoch AND c.owner = :owner AND c.state = 'leased'", ""),
    ],
    "the counters are not of what was stored": [
        ("FROM stored)", ("FROM json_to_recordset(CAST(:results AS json)) AS x(ok bool, prompt_tokens int, "
                         "cached_tokens int, completion_tokens int, reasoning_tokens int))")),
    ],
    "the state is not asked": [
        (FENCE, "AND epoch = :epoch AND CAST(:owner AS uuid) IS NOT NULL"),
        ("AND c.epoch = :epoch AND c.owner = :owner AND c.state = 'leased'", "AND c.epoch = :epoch"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_statement_that_is_broken_on_purpose_is_found(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    broken = results.FLUSH.text
    for right, wrong in BROKEN[name]:
        assert broken.count(right) == 1
        broken = broken.replace(right, wrong)
    monkeypatch.setattr(results, "FLUSH", text(broken))
    with pytest.raises((AssertionError, database.sqlalchemy.exc.IntegrityError)):
        search(ledger, examples=300, is_repeatable=True)
