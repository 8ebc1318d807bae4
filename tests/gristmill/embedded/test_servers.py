"""The embedded servers, with the real programs: whoever starts, dies or leaves, one stays, with its data."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kombu
import psycopg
import pytest

from gristmill.embedded import Addresses, EmbeddedServers, locks

REPOSITORY = Path(__file__).parents[3]
DEADLINE_SECONDS = 20

USER = """
import sys
from pathlib import Path
from gristmill.embedded import EmbeddedServers
with EmbeddedServers(Path(sys.argv[1]), say=print):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def users() -> Iterator[list[subprocess.Popen[str]]]:
    """Other processes that use the servers; ended at the end."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def user(folder: Path, users: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Another process that starts the servers; it says `ready`, and releases them when its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    users.append(process)
    return process


def await_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert process.stdout.readline() == "ready\n"


def servers(folder: Path, **options: Path) -> EmbeddedServers:
    return EmbeddedServers(folder, say=lambda _: None, **options)


def ask(addresses: Addresses, statement: str) -> object:
    with psycopg.connect(addresses.database_url) as connection:
        row = connection.execute(statement).fetchone()  # type: ignore[call-overload]
        assert row
        return row[0]


def answers(addresses: Addresses) -> bool:
    """Whether both servers do their work."""
    try:
        with kombu.Connection(addresses.broker_url) as broker:
            broker.ensure_connection(max_retries=1, interval_start=0)
        return ask(addresses, "SELECT 1") == 1
    except (psycopg.OperationalError, kombu.exceptions.OperationalError):
        return False


def pid(folder: Path, server: str) -> int:
    return int((folder / "servers" / f"{server}.pid").read_text())


def is_running(folder: Path, server: str) -> bool:
    return locks.is_held(folder / "servers" / f"{server}.lock")


def starts(folder: Path, server: str) -> int:
    """How often the server was started, once by the seed."""
    return (folder / "servers" / f"{server}.log").read_text().count(" UTC: start\n") - 1


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_new_folder_gets_a_postgres_and_a_valkey_that_answer(place: Path) -> None:
    with servers(place / "data") as shared:
        assert shared.addresses.database_url.startswith("postgresql://gristmill:")
        assert answers(shared.addresses)


def test_the_database_is_for_its_owner_alone(used: Path, running: EmbeddedServers) -> None:
    home = used / "servers" / "postgres"
    assert ask(running.addresses, "SHOW listen_addresses") == ""
    assert ask(running.addresses, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
    assert stat.S_IMODE((home / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "socket").stat().st_mode) == 0o700
    assert stat.S_IMODE((used / "servers").stat().st_mode) & 0o007 == 0
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host=str(home / "socket"), user="gristmill", dbname="gristmill", password="guess")


def test_the_password_is_not_printed_with_the_addresses(running: EmbeddedServers) -> None:
    assert "gristmill:" not in repr(running.addresses)


def test_the_database_keeps_what_it_has_confirmed_and_any_text(running: EmbeddedServers) -> None:
    assert ask(running.addresses, "SHOW fsync") == "on"
    assert ask(running.addresses, "SHOW data_checksums") == "on"
    assert ask(running.addresses, "SHOW server_encoding") == "UTF8"


def test_a_second_start_adopts_the_running_servers(used: Path, running: EmbeddedServers) -> None:
    before = pid(used, "postgres"), pid(used, "valkey")
    with servers(used) as second:
        assert second.addresses == running.addresses
        assert (pid(used, "postgres"), pid(used, "valkey")) == before
    assert answers(running.addresses)


def test_servers_live_in_a_session_of_their_own_so_that_ctrl_c_does_not_reach_them(
    used: Path, running: EmbeddedServers
) -> None:
    assert os.getsid(pid(used, "postgres")) != os.getsid(0)
    assert os.getsid(pid(used, "valkey")) != os.getsid(0)


def test_servers_whose_starter_was_killed_are_adopted_and_stopped_by_the_next(
    folder: Path, users: list[subprocess.Popen[str]]
) -> None:
    starter = user(folder, users)
    await_ready(starter)
    orphan = pid(folder, "postgres")
    starter.kill()
    starter.wait()
    with servers(folder) as shared:
        assert pid(folder, "postgres") == orphan
        assert answers(shared.addresses)
    assert not is_running(folder, "postgres")


def test_the_last_user_and_no_other_stops_the_servers_for_good(
    folder: Path, users: list[subprocess.Popen[str]]
) -> None:
    with servers(folder) as shared:
        other = user(folder, users)
        await_ready(other)
        other.communicate()
        assert other.returncode == 0
        assert answers(shared.addresses)
    shared.check()
    assert not is_running(folder, "postgres"), "not even a check starts it again"
    assert not is_running(folder, "valkey")
    assert "database system is shut down" in (folder / "servers" / "postgres.log").read_text()


def test_processes_that_start_at_the_same_moment_start_one_server_each(
    folder: Path, users: list[subprocess.Popen[str]]
) -> None:
    crowd = [user(folder, users) for _ in range(3)]
    for process in crowd:
        await_ready(process)
    assert starts(folder, "postgres") == 1
    assert starts(folder, "valkey") == 1


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_a_killed_server_is_started_again_and_what_was_committed_is_there(folder: Path, server: str) -> None:
    said: list[str] = []
    with EmbeddedServers(folder, say=said.append) as shared:
        with psycopg.connect(shared.addresses.database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        killed = pid(folder, server)
        os.kill(killed, signal.SIGKILL)

        def is_back() -> bool:
            shared.check()
            return pid(folder, server) != killed and answers(shared.addresses)

        eventually(is_back)
        assert ask(shared.addresses, "SELECT answer FROM kept") == 42
        assert said == [f"{server.capitalize()} has died; starting it again."]


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0
    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        return self.now


def test_a_server_that_dies_again_and_again_is_never_missed_for_longer_than_four_seconds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, missed = Clock(), []
    monkeypatch.setattr("gristmill.embedded.servers.time", clock)
    with servers(folder) as shared:
        for life in (0, 0, 0, 0, 0, 5, 9, 0):
            clock.now += life
            shared.check()
            os.kill(pid(folder, "valkey"), signal.SIGKILL)
            eventually(lambda: not is_running(folder, "valkey"))
            died_at = clock.now
            shared.check()
            while not is_running(folder, "valkey"):
                clock.now += 0.5
                shared.check()
            missed.append(clock.now - died_at)
            eventually(lambda: answers(shared.addresses))
    assert missed == [0, 1, 2, 4, 4, 0, 0, 1]


def test_a_stale_pid_that_now_is_another_process_does_not_keep_postgres_from_starting(folder: Path) -> None:
    with servers(folder):
        os.kill(pid(folder, "postgres"), signal.SIGKILL)
        eventually(lambda: not is_running(folder, "postgres"))
    stale = folder / "servers" / "postgres" / "data" / "postmaster.pid"
    _, _, rest = stale.read_text().partition("\n")
    owner = stale.stat().st_uid
    stranger = subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None)
    try:
        stale.write_text(f"{stranger.pid}\n{rest}")
        with servers(folder) as shared:
            assert answers(shared.addresses)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("name", ["long" * 40, "odd, #?%20&=+ “näme”"])
def test_a_data_folder_may_have_any_name(place: Path, folder: Path, name: str) -> None:
    folder.rename(place / name)
    with servers(place / name) as shared:
        assert answers(shared.addresses)
        postgres = Path(shared.addresses.database_url.partition("?host=")[2])
        valkey = Path(shared.addresses.broker_url.removeprefix("redis+socket://").partition("?")[0]).parent
        for socket_folder in (postgres, valkey):
            assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    shutil.rmtree(postgres)
    shutil.rmtree(valkey)
