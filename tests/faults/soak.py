"""Load for half an hour while everything fails at random, from a printed seed; then clients and the judge are asked.

    python -m tests.faults.soak --minutes 30 --seed 7

An API, two io workers and three model workers run on servers of their own; five clients order batches, wait for them
and count what they get. Every few seconds, also while another has not passed, something happens: a worker is killed,
or stopped beyond its lease, or cut off from Postgres, both ways or one; Postgres or Valkey is killed, the last with all
it held; a batch is cancelled or expires. Times are a tenth of an installation's: a lease is 6 seconds, not 60.
Ends with status 1 where a promise was broken.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from gristmill.embedded import EmbeddedServers
from jobs import database, keys
from tests import tiny_model
from tests.faults.clients import ENDED, Client, Seen
from tests.faults.proxy import Network
from tests.faults.system import System, on_servers_of_its_own
from tests.faults.worker import MODEL
from tests.gristmill.embedded.conftest import open_folder, remove

LEASE_SECONDS = 6
PATIENCE = {
    "GRISTMILL_CHUNK_LINES": "16",
    "GRISTMILL_LEASE_SECONDS": str(LEASE_SECONDS),
    "GRISTMILL_HEARTBEAT_SECONDS": "0.5",
    "GRISTMILL_SWEEP_SECONDS": "0.5",
    "GRISTMILL_FLUSH_SECONDS": "0.1",
    "GRISTMILL_DRAIN_SECONDS": "2",
    "GRISTMILL_REQUESTS_PER_MINUTE": "100000",
}
WORKERS = ("io", "io", "model", "model", "model")
CLIENTS = 5
PAUSE_SECONDS = (1, 6)
SERVER_LIVES_SECONDS = 10  # so that it has time to do anything at all
RECOVERY_SECONDS_MAX = 60
POLL_SECONDS = 0.05


@dataclass
class Place:
    """Where a worker runs, with its own way to Postgres, and runs again when it has ended."""

    kind: str
    database_url: str
    network: Network
    process: BaseProcess
    is_killed: bool = False  # by us; any other end is a fault
    is_taken: bool = False  # something happens here


@dataclass
class Event:
    """Something that happens for a while, and by what it is seen that it has passed."""

    has_passed: Callable[[], bool] | None  # None: nobody lost anything by it
    lasts_seconds: float = 0
    end: Callable[[], object] = lambda: None


class Soak:
    """The processes, and what befalls them."""

    def __init__(self, home: Path, servers: EmbeddedServers, system: System, seed: int) -> None:
        self.home, self.servers, self.system, self.ledger = home, servers, system, system.ledger
        self.chance = random.Random(seed)
        self.seen = Seen()
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        self.killed_at: dict[str, float] = {}
        self.over, self.calm = threading.Event(), threading.Event()
        self.system.patience = PATIENCE
        self.system.start("api")
        self.places = [self._place(number, kind) for number, kind in enumerate(WORKERS)]
        self.key = database.run(self.ledger, lambda c: keys.create(c, name="soak"))
        self.lock = threading.Lock()
        threading.excepthook = lambda failed: self.seen.accuse(f"the soak itself failed: {failed.exc_value!r}")

    def _place(self, number: int, kind: str) -> Place:
        url = self.servers.addresses.database_url
        server = Path(url.partition("?host=")[2].replace("%2F", "/"))
        network = Network(self.home / f"network-{number}", server)
        own = f"{url.partition('?')[0]}?host={self.home}/network-{number}"
        return Place(kind, own, network, self.system.start(kind, database_url=own))

    def client(self) -> Client:
        return Client(self.system.socket, self.key, self.seen)

    def supervise(self) -> None:
        """Start again what has ended, as `gristmill up` does."""
        while not self.over.wait(4 * POLL_SECONDS):
            self.servers.check()
            for place in self.places:
                if place.process.is_alive():
                    continue
                if not place.is_killed:
                    self.seen.accuse(f"a worker ended by itself: {place.kind}, status {place.process.exitcode}")
                place.is_killed = False
                place.process = self.system.start(place.kind, database_url=place.database_url)

    def befall(self, name: str) -> None:
        """Let something happen, and see how long it takes to pass."""
        with self._a_free_worker() as place:
            began, passed_after, is_ended = time.monotonic(), None, False
            event = getattr(self, name)(place)
            while event is not None and not (is_ended and passed_after is not None):
                waited = time.monotonic() - began
                if not is_ended and (waited >= event.lasts_seconds or self.calm.is_set()):
                    event.end()
                    is_ended = True
                if passed_after is None and self._has_passed(event):
                    passed_after = waited
                    if event.has_passed is not None:
                        self.recoveries[name].append(waited)
                if waited > RECOVERY_SECONDS_MAX:
                    self.seen.accuse(f"'{name}' has not passed after {RECOVERY_SECONDS_MAX} s")
                    return
                time.sleep(POLL_SECONDS)

    def _has_passed(self, event: Event) -> bool:
        try:
            return event.has_passed is None or event.has_passed()
        except SQLAlchemyError:
            return False  # nobody knows, while the database is away

    @contextlib.contextmanager
    def _a_free_worker(self) -> Iterator[Place | None]:
        with self.lock:
            free = [place for place in self.places if not place.is_taken]
            place = self.chance.choice(free) if free else None
            if place is not None:
                place.is_taken = True
        try:
            yield place
        finally:
            if place is not None:
                place.is_taken = False

    # What may happen.

    def a_worker_is_killed(self, place: Place | None) -> Event | None:
        if place is None:
            return None
        moves_on = self._what_it_holds_moves_on(place)
        place.is_killed = True
        place.process.kill()
        return Event(moves_on)

    def a_worker_sleeps_past_its_lease(self, place: Place | None) -> Event | None:
        if place is None:
            return None
        moves_on, pid = self._what_it_holds_moves_on(place), place.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        return Event(moves_on, self._beyond_a_lease(), partial(os.kill, pid, signal.SIGCONT))

    def a_worker_is_cut_off_from_postgres(self, place: Place | None) -> Event | None:
        if place is None:
            return None
        moves_on = self._what_it_holds_moves_on(place)
        there, back = self.chance.choice([(True, True), (True, False), (False, True)])
        place.network.hold(there=there, back=back)
        end = self.chance.choice([place.network.heal, place.network.cut])
        return Event(moves_on, self._beyond_a_lease(), end)

    def postgres_is_killed(self, _: Place | None) -> Event | None:
        return self._kill_server("postgres")

    def valkey_is_killed(self, _: Place | None) -> Event | None:
        return self._kill_server("valkey")

    def _kill_server(self, name: str) -> Event | None:
        now = time.monotonic()
        if now < self.killed_at.get(name, -SERVER_LIVES_SECONDS) + SERVER_LIVES_SECONDS:
            return None
        self.killed_at[name], stored = now, self._stored()
        with contextlib.suppress(ValueError, ProcessLookupError):
            os.kill(int((self.home / "data" / "servers" / f"{name}.pid").read_text()), signal.SIGKILL)
        return Event(lambda: self._stored() > stored)

    def a_batch_is_cancelled(self, _: Place | None) -> Event | None:
        batch_id = self._some_batch()
        if batch_id is None:
            return None
        self.client().cancel(batch_id)
        return Event(partial(self._has_ended, batch_id))

    def a_batch_expires(self, _: Place | None) -> Event | None:
        batch_id = self._some_batch()
        if batch_id is None:
            return None
        with self.ledger.begin() as connection:
            late = text("UPDATE batch SET expires_at = now() WHERE public_id = :id AND state = 'in_progress'")
            connection.execute(late, {"id": batch_id})
        return Event(partial(self._has_ended, batch_id))

    def _beyond_a_lease(self) -> float:
        return LEASE_SECONDS * self.chance.uniform(1.2, 2)

    # What is seen in the ledger.

    def _ask(self, query: str, **values: object) -> list[tuple[object, ...]]:
        with self.ledger.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def _stored(self) -> int:
        return int(str(self._ask("SELECT coalesce(sum(ok + failed), 0) FROM chunk")[0][0]))

    def _what_it_holds_moves_on(self, place: Place) -> Callable[[], bool] | None:
        """Whether all that a worker has leased now is answered, ended or leased anew; None if it has nothing."""
        held = set(self._ask(f"{LEASED} WHERE w.pid = :pid", pid=place.process.pid))
        return (lambda: not held & set(self._ask(OPEN))) if held else None

    def _some_batch(self) -> str | None:
        found = self._ask("SELECT public_id FROM batch WHERE NOT (state = ANY(:ended))", ended=list(ENDED))
        return str(self.chance.choice(found)[0]) if found else None

    def _has_ended(self, batch_id: str) -> bool:
        return self._ask("SELECT state FROM batch WHERE public_id = :id", id=batch_id)[0][0] in ENDED


# As (batch, position, epoch): chunks, and the batches that are read or written.
OPEN = """
    SELECT batch_id, first_position, epoch FROM chunk WHERE state IN ('leased', 'ready')
    UNION ALL SELECT id, -1, epoch FROM batch WHERE owner IS NOT NULL
"""
LEASED = """
    SELECT l.batch_id, l.first_position, l.epoch
      FROM (SELECT batch_id, first_position, epoch, owner FROM chunk WHERE state = 'leased'
            UNION ALL SELECT id, -1, epoch, owner FROM batch) l
      JOIN worker w ON w.id = l.owner
"""
EVENTS = [
    "a_worker_is_killed",
    "a_worker_sleeps_past_its_lease",
    "a_worker_is_cut_off_from_postgres",
    "postgres_is_killed",
    "valkey_is_killed",
    "a_batch_is_cancelled",
    "a_batch_expires",
]


def run(soak: Soak, minutes: float, seed: int) -> None:
    """Everything at once, then nothing any more until all batches have ended."""
    soak.system.until(soak.system.is_served)
    threading.Thread(target=soak.supervise, daemon=True).start()
    orders = [
        threading.Thread(target=soak.client().order_until, args=(soak.calm, seed * CLIENTS + number), daemon=True)
        for number in range(CLIENTS)
    ]
    for thread in orders:
        thread.start()
    events, end = [], time.monotonic() + minutes * 60
    while time.monotonic() < end:
        time.sleep(soak.chance.uniform(*PAUSE_SECONDS))
        name = soak.chance.choice(EVENTS)
        events.append(threading.Thread(target=befall_unless_away, args=(soak, name), daemon=True))
        events[-1].start()
    soak.calm.set()
    for thread in (*events, *orders):
        thread.join(2 * RECOVERY_SECONDS_MAX + 240)
        if thread.is_alive():
            soak.seen.accuse(f"not over: {thread.name}")
    soak.over.set()
    soak.system.kill_all()
    for fault in soak.system.faults():
        soak.seen.accuse(fault)


def befall_unless_away(soak: Soak, name: str) -> None:
    with contextlib.suppress(SQLAlchemyError):  # the database is away, so this does not happen now
        soak.befall(name)


def told(soak: Soak, minutes: float, seed: int) -> str:
    """The rows of docs/reliability.md."""
    asked, stored = soak.system.asked, soak._stored()
    rows = [f"seed {seed}, {minutes:g} minutes, {sum(map(len, soak.recoveries.values()))} events", ""]
    rows += ["| what happened | times | passed after, median | at most |", "|---|---|---|---|"]
    for name, seconds in sorted(soak.recoveries.items()):
        times = f"{len(seconds)} | {statistics.median(seconds):.1f} s | {max(seconds):.1f} s"
        rows.append(f"| {name.replace('_', ' ')} | {times} |")
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(soak.seen.outcomes.items()))
    rows += ["", f"batches: {outcomes}; lines answered to clients: {soak.seen.answered}"]
    rows += [f"lines stored: {stored}; asked of an engine beyond those, again or for nothing: {asked - stored}"]
    rows += [f"requests sent again: {soak.seen.again}; promises broken: {len(soak.seen.broken)}"]
    return "\n".join([*rows, *soak.seen.broken])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    home = open_folder()
    tiny_model.write(home / "models" / MODEL)
    with on_servers_of_its_own(home / "data", home, connections=16) as (system, servers):
        soak = Soak(home, servers, system, chosen.seed)
        try:
            run(soak, chosen.minutes, chosen.seed)
            print(told(soak, chosen.minutes, chosen.seed), flush=True)
        finally:
            soak.over.set()
    if soak.seen.broken:
        print(f"the logs are in {home}")
        return 1
    remove(home)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
