"""As which user a server runs, and how to run a program as that user."""

import errno
import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gristmill.embedded.errors import EmbeddedError

SERVICE_ACCOUNTS = ("gristmill", "nobody")  # the first that exists; an operator may make the first one
# Nothing of ours reaches a server: no PG* variable, no locale (its messages are read by us), no secret.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
COMMAND_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine."""

    uid: int
    gid: int

    @property
    def is_ours(self) -> bool:
        """Whether this process already runs as this user."""
        return self.uid == os.geteuid()

    @property
    def user(self) -> int | None:
        """`user=` of subprocess; None where nothing must change, which an ordinary user may not ask for."""
        return None if self.is_ours else self.uid

    @property
    def group(self) -> int | None:
        """`group=` of subprocess."""
        return None if self.is_ours else self.gid

    @property
    def groups(self) -> list[int] | None:
        """`extra_groups=` of subprocess: another user keeps none of ours."""
        return None if self.is_ours else []


def current() -> Account:
    """The user of this process."""
    return Account(os.geteuid(), os.getegid())


def for_postgres(data: Path) -> Account:
    """The user to run Postgres as: it refuses root. Existing `data` keeps the user who wrote it."""
    if os.geteuid() != 0:
        return current()
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    return service()


def service() -> Account:
    """An existing user without rights. EmbeddedError where the machine has none."""
    for name in SERVICE_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedError(
        "Postgres refuses to run as root and this machine has no user 'nobody' to run it as: "
        "make a user 'gristmill', start as an ordinary user, or set DATABASE_URL."
    )


def can_reach(account: Account, folder: Path) -> bool:
    """Whether `account` may enter `folder`: asked of the system, because rights have more ways than modes."""
    return run(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)], account=account).returncode == 0


def run(command: Sequence[str], *, account: Account, folder: Path = Path("/")) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end as `account` in `folder`, its output captured.

    PermissionError where that user may not execute the program; EmbeddedError where we may not become that
    user, as for a root without its capabilities.
    """
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=COMMAND_SECONDS,
            start_new_session=True,
            umask=0o077,
            user=account.user,
            group=account.group,
            extra_groups=account.groups,
        )
    except OSError as error:
        if account.is_ours or error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        raise EmbeddedError(
            f"Postgres refuses to run as root, and this root may not become user {account.uid} "
            f"({error.strerror}): start as an ordinary user, or set DATABASE_URL."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"{command[0]} did not end within {COMMAND_SECONDS} s; is the disk stuck?") from error
