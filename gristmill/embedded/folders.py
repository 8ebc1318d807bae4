"""Where the embedded servers keep their files, and who may enter there.

    <data folder>/servers/           0700, of the user who started us
        start.lock  users.lock
        postgres.lock .pid .log      valkey.lock .pid .log
        valkey/                      its socket
        postgres/                    Postgres's home: data/, socket/, password (0600), binaries-<version>/
        postgres.path                names that home where it is elsewhere

Postgres's home is elsewhere only for root, whose Postgres runs as a service user, and only where that user
cannot enter the data folder (a home folder of mode 0700): then it is /var/lib/gristmill-<digest>, which
survives a reboot. No folder that we did not make ever changes its mode or owner.
"""

import hashlib
import os
import re
import stat
from pathlib import Path

from gristmill.embedded import account as accounts
from gristmill.embedded.account import Account
from gristmill.embedded.errors import EmbeddedError

# macOS takes 104 bytes with the closing zero, Linux 108.
SOCKET_PATH_BYTES_MAX = 103
# Not XDG_RUNTIME_DIR: it goes at logout, while the servers may stay, and differs between two logins.
PLAIN = re.compile(r"[A-Za-z0-9/._-]+")
SHORT_FOLDER = Path("/tmp")  # noqa: S108


def servers(data_dir: Path) -> Path:
    """The private folder of this data folder's servers, made if need be. EmbeddedError if it is another's."""
    data_dir.mkdir(parents=True, exist_ok=True)
    folder = data_dir.resolve() / "servers"
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        raise EmbeddedError(
            f"{folder} belongs to user {owner} and you are user {os.geteuid()}: start as that user, "
            "or choose another data folder with GRISTMILL_DATA_DIR."
        )
    return folder


def postgres_home(servers: Path, elsewhere: Path) -> Path:
    """The folder of Postgres's data, decided once and then kept.

    EmbeddedError where it was decided to be elsewhere and is no longer there: beginning anew in silence
    would look like losing every batch.
    """
    pointer = servers / "postgres.path"
    if pointer.exists():
        home = Path(pointer.read_text().strip())
        if not home.is_dir():
            raise EmbeddedError(
                f"The database of {servers.parent} was kept in {home}, which is gone: bring it back, or "
                f"delete {pointer} to begin with an empty one."
            )
        return home
    beside = servers / "postgres"
    if beside.exists() or os.geteuid() != 0:
        beside.mkdir(mode=0o700, exist_ok=True)
        return beside
    return _home_for_root(servers, elsewhere)


def _home_for_root(servers: Path, elsewhere: Path) -> Path:
    service = accounts.service()
    admit(service, servers)
    if accounts.can_reach(service, servers):
        home = servers / "postgres"
        home.mkdir(mode=0o700)
        admit(service, home)
        return home
    servers.chmod(0o700)
    home = elsewhere / f"gristmill-{digest(servers)}"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    admit(service, home)
    (servers / "postgres.path").write_text(f"{home}\n")
    return home


def admit(account: Account, folder: Path) -> None:
    """Let `account` pass through a folder of ours, without seeing what is in it."""
    os.chown(folder, -1, account.gid)
    folder.chmod(0o710)


def for_socket(preferred: Path, socket: str, account: Account) -> Path:
    """A folder of mode 0700 that `account` owns, in which the path of `socket` can be bound and put in a URL.

    That is `preferred`, or a short one if its name is long, or has signs that one of the many readers of
    addresses (libpq, Celery, Postgres's own settings) takes for its own. EmbeddedError where somebody else
    made the short one first.
    """
    path = str(preferred / socket)
    if len(path) <= SOCKET_PATH_BYTES_MAX and PLAIN.fullmatch(path):
        folder = preferred
    else:
        folder = SHORT_FOLDER / f"gristmill-{account.uid}-{digest(preferred)}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (account.uid, os.geteuid()) or found.st_mode & 0o077:
        raise EmbeddedError(f"{folder} is not a private folder of ours: remove it and start again.")
    give(account, folder)
    return folder


def give(account: Account, path: Path) -> None:
    """Make `account` the owner of something that we just made."""
    if not account.is_ours:
        os.chown(path, account.uid, account.gid)


def digest(path: Path) -> str:
    """A short name for a path."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
