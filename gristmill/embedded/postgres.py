"""The embedded Postgres: the truth of this machine's batches, so it keeps every promise a real one keeps.

Clients prove themselves with a random password (scram-sha-256), not as a user of the machine (`peer`):
root's Postgres runs as another user than its clients do, and user names are not the same, or not known at
all, on the two sides of a container. The password is in a file that only the owner of the data folder can
read, and the socket in a folder that nobody else can enter. We connect as role `gristmill`, which owns
its database and has no other rights: a fault in our SQL cannot run programs or read the server's files.

Text is sorted by the locale C.UTF-8 that Postgres itself brings: the same on every system, so neither an
upgrade of the C library nor a move to another machine can put an index out of order.
"""

import os
import secrets
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from gristmill.embedded import account as accounts
from gristmill.embedded import binaries, folders
from gristmill.embedded.account import Account
from gristmill.embedded.daemon import Daemon, command_line, fault
from gristmill.embedded.errors import EmbeddedError

PORT = 5432  # names the socket; nothing listens on TCP
SOCKET = f".s.PGSQL.{PORT}"
ROLE = DATABASE = "gristmill"
SUPERUSER = "postgres"
ANSWER_SECONDS = 5
STOP_SECONDS = 60
NO_PROCESS = 2**31 - 1  # above every system's largest process id

# Written to postgresql.conf when the data is made, for the operator to change.
SETTINGS = {
    "shared_buffers": "128MB",  # the tables that are read again and again are small
    "max_wal_size": "2GB",  # COPY of a large file without a checkpoint in its middle
    "idle_in_transaction_session_timeout": "60s",  # a stuck client must not hold back vacuum
    "dynamic_shared_memory_type": "mmap",  # /dev/shm is 64 MB in a container, and swept when a user logs out
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
}


@dataclass(frozen=True, slots=True)
class Postgres:
    """A Postgres on a unix socket, run as `account`."""

    name: ClassVar[str] = "Postgres"
    daemon: Daemon
    home: Path
    account: Account
    socket_folder: Path

    @classmethod
    def of(cls, servers: Path, elsewhere: Path) -> Self:
        """The Postgres of this servers' folder; nothing is started. EmbeddedError where its data is gone."""
        home = folders.postgres_home(servers, elsewhere)
        account = accounts.for_postgres(home / "data")
        socket_folder = folders.for_socket(home / "socket", SOCKET, account)
        return cls(Daemon(servers, "postgres", mark=home / "data"), home, account, socket_folder)

    @property
    def data(self) -> Path:
        """The cluster's files."""
        return self.home / "data"

    @property
    def url(self) -> str:
        """What the rest of the program connects to. EmbeddedError where the password is lost."""
        return f"postgresql://{ROLE}:{self._password()}@/{DATABASE}?host={quote(str(self.socket_folder))}"

    def launch(self) -> None:
        """Start the server and return at once; its data is made before if there is none."""
        programs = binaries.postgres_for(self.account, self.home)
        if not self.data.exists():
            self._create_data(programs)
        self._check_version()
        self._forget_reused_pid()
        command = [str(programs / "postgres"), "-D", str(self.data), "-p", str(PORT)]
        for setting in (
            "listen_addresses=",
            f"unix_socket_directories={self.socket_folder}",
            "unix_socket_permissions=0700",
            "logging_collector=off",  # we quote its log
        ):
            command += ["-c", setting]
        self.daemon.start(command, account=self.account, folder=self.home)

    def is_ready(self) -> bool:
        """Whether it takes connections, and has our role and database: they are made here if need be.

        EmbeddedError where the password is not the one of this data.
        """
        password = self._password()
        try:
            with psycopg.connect(
                host=str(self.socket_folder),
                port=PORT,
                user=SUPERUSER,
                password=password,
                dbname="postgres",
                connect_timeout=ANSWER_SECONDS,
                autocommit=True,
            ) as connection:
                _create_role_and_database(connection, password)
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise EmbeddedError(
                    f"The password in {self.home / 'password'} is not the one of the database beside it: "
                    "bring back the file that belongs to it."
                ) from None
            return False
        return True

    def stop(self) -> None:
        """End the server: its clients are cut off and all is written (a fast shutdown)."""
        self.daemon.stop(gently=signal.SIGINT, gently_seconds=STOP_SECONDS, firmly=signal.SIGQUIT)

    def _password(self) -> str:
        path = self.home / "password"
        try:
            return path.read_text()
        except FileNotFoundError:
            raise EmbeddedError(f"{path} is missing: bring it back, it opens the database beside it.") from None

    def _create_data(self, programs: Path) -> None:
        """Make the cluster under another name and rename it, so that `data` is whole whenever it exists."""
        for left in self.home.glob("data-draft-*"):
            shutil.rmtree(left)
        password = secrets.token_hex(32)
        _write_private(self.home / "password", password, accounts.current())
        draft = Path(tempfile.mkdtemp(prefix="data-draft-", dir=self.home))
        folders.give(self.account, draft)
        try:
            self._initdb(programs, draft, password)
            draft.rename(self.data)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        _sync(self.home)

    def _initdb(self, programs: Path, draft: Path, password: str) -> None:
        with tempfile.TemporaryDirectory(prefix="initdb-", dir=self.home) as name:
            folders.give(self.account, Path(name))
            password_file = Path(name) / "password"
            _write_private(password_file, password, self.account)
            command = [str(programs / "initdb"), "-D", str(draft), "-U", SUPERUSER, "-A", "scram-sha-256"]
            command += ["--pwfile", str(password_file), "--data-checksums", "--encoding=UTF8", "--no-locale"]
            command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
            for setting, value in SETTINGS.items():
                command += ["--set", f"{setting}={value}"]
            made = accounts.run(command, account=self.account, folder=self.home)
        if made.returncode != 0:
            words = fault(made.stderr) or made.stderr.strip() or f"initdb ended with {made.returncode}"
            raise EmbeddedError(f"The database in {self.home} could not be made: {words}.")

    def _check_version(self) -> None:
        ours = binaries.postgres_version().partition(".")[0]
        path = self.data / "PG_VERSION"
        try:
            found = path.read_text().strip()
        except FileNotFoundError:
            raise EmbeddedError(f"{self.data} is not a Postgres data folder: {path.name} is missing.") from None
        if found != ours:
            raise EmbeddedError(
                f"{self.data} was written by Postgres {found} and this Gristmill brings Postgres {ours}: "
                f"dump it with Postgres {found} (pg_dump), move {self.home} away, start, "
                "and restore the dump."
            )

    def _forget_reused_pid(self) -> None:
        """Let Postgres start though its stale lock files name a process that is now a zombie or another.

        Postgres refuses while that process exists. In postmaster.pid only the number is replaced: the rest
        lets Postgres see for itself that no process of an earlier server still uses its shared memory.
        """
        (self.socket_folder / f"{SOCKET}.lock").unlink(missing_ok=True)  # in a folder that only we use
        path = self.data / "postmaster.pid"
        try:
            first, _, rest = path.read_text().partition("\n")
            pid = int(first)
        except (FileNotFoundError, ValueError):
            return
        if f" {self.data} " in f"{command_line(pid)} ":
            raise EmbeddedError(
                f"Process {pid} uses {self.data} and was not started by Gristmill: stop it (pg_ctl stop) first."
            )
        path.write_text(f"{NO_PROCESS}\n{rest}")


def _create_role_and_database(connection: psycopg.Connection[tuple[object, ...]], password: str) -> None:
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone():
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        connection.execute(create.format(sql.Identifier(ROLE), sql.Literal(password)))
    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
        create = sql.SQL("CREATE DATABASE {} OWNER {}")
        connection.execute(create.format(sql.Identifier(DATABASE), sql.Identifier(ROLE)))


def _write_private(path: Path, text: str, account: Account) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
    folders.give(account, path)


def _sync(folder: Path) -> None:
    """Make a rename in `folder` outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
