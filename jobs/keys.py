"""Callers' keys: `gm_<id>_<secret>`, of which only the SHA-256 of the secret is kept.

A plain hash suits 256 random bits; password hashing would only offer a way to exhaust the CPU.
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, or_, select, text

from jobs.errors import BadRequest, Forbidden, Unauthenticated
from jobs.settings import Settings
from jobs.tables import api_key as table

DEFAULT_PROJECT = "default"
UNKNOWN_SHA256 = bytes(32)


class Scope(StrEnum):
    """What a key may be allowed to do; one without scopes may do everything."""

    FILES_WRITE = "files:write"
    BATCHES_WRITE = "batches:write"
    BATCHES_READ = "batches:read"
    RESULTS_READ = "results:read"
    CHAT_WRITE = "chat:write"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may have at once, where it differs from the settings of the same names; None where not."""

    requests_per_minute: int | None = None
    uploads_at_once: int | None = None
    open_batches: int | None = None
    queued_lines: int | None = None

    def over(self, settings: Settings) -> "Limits":
        """These, and the settings' where there are none."""
        return Limits(
            self.requests_per_minute or settings.requests_per_minute,
            self.uploads_at_once or settings.uploads_at_once,
            self.open_batches or settings.open_batches,
            self.queued_lines or settings.queued_lines,
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """What a key says: which it is, and the hash of its secret."""

    id: str
    secret_sha256: bytes


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: everything a request touches belongs to this project."""

    project_id: str
    key_id: str
    scopes: frozenset[Scope] = frozenset(Scope)
    limits: Limits = Limits()

    def require(self, scope: Scope) -> None:
        """Forbidden if the key is not for this."""
        if scope not in self.scopes:
            raise Forbidden(
                f"You have insufficient permissions for this operation. Missing scopes: {scope.value}.",
                code="missing_scope",
            )


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key to whoever runs the server; not the secret, which nobody has."""

    id: str
    project_id: str
    name: str
    scopes: tuple[str, ...] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    is_live: bool


LIMITS = (table.c.requests_per_minute, table.c.uploads_at_once, table.c.open_batches, table.c.queued_lines)
IS_LIVE: ColumnElement[bool] = table.c.revoked_at.is_(None) & or_(
    table.c.expires_at.is_(None), table.c.expires_at > func.now()
)
# Made once: every request asks this.
KNOWN = select(table.c.project_id, table.c.secret_sha256, table.c.scopes, *LIMITS).where(
    table.c.id == bindparam("id"), IS_LIVE
)


def create(
    connection: Connection,
    *,
    name: str,
    project_id: str = DEFAULT_PROJECT,
    scopes: Collection[Scope] | None = None,
    limits: Limits | None = None,
    lifetime_seconds: int | None = None,
) -> str:
    """Make a key, and its project if that is new; the only time the whole key can be seen."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    chosen = limits or Limits()
    ensure_project(connection, project_id)
    values: dict[str, object] = {
        "id": key_id,
        "project_id": project_id,
        "name": name,
        "secret_sha256": _sha256(secret),
        "scopes": None if scopes is None else sorted(scope.value for scope in scopes),
        **{column.name: getattr(chosen, column.name) for column in LIMITS},
    }
    if lifetime_seconds is not None:
        values["expires_at"] = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, lifetime_seconds)
    connection.execute(table.insert().values(**values))
    return f"gm_{key_id}_{secret}"


def ensure_project(connection: Connection, project_id: str) -> None:
    connection.execute(text("INSERT INTO project (id) VALUES (:id) ON CONFLICT DO NOTHING"), {"id": project_id})


def authenticate(connection: Connection, key: str | None) -> Caller:
    """The caller behind a key. Unauthenticated if it is missing, malformed, unknown, expired or revoked.

    An unknown id costs the same comparison as a wrong secret, so the time tells neither from the other.
    """
    if not key:
        raise Unauthenticated(
            "You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
        )
    parts = parts_of(key)
    row = None if parts is None else connection.execute(KNOWN, {"id": parts.id}).one_or_none()
    told = UNKNOWN_SHA256 if parts is None else parts.secret_sha256
    known = UNKNOWN_SHA256 if row is None else row.secret_sha256
    if not hmac.compare_digest(known, told) or parts is None or row is None:
        raise Unauthenticated("Incorrect API key provided.", code="invalid_api_key")
    return caller_of(parts.id, row)


def parts_of(key: str) -> Parts | None:
    """What a key says; None for what is none of ours."""
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    if prefix != "gm" or not (key_id.isalnum() and key_id.isascii()):
        return None
    return Parts(key_id, _sha256(secret))


def caller_of(key_id: str, row: Row[*tuple[Any, ...]]) -> Caller:
    """The caller of a row with a key's `project_id`, `scopes` and LIMITS."""
    scopes = frozenset(Scope) if row.scopes is None else frozenset(map(Scope, row.scopes))
    return Caller(row.project_id, key_id, scopes, Limits(*(getattr(row, column.name) for column in LIMITS)))


def is_valid(connection: Connection, key: str) -> bool:
    """Whether a key would be let in."""
    try:
        authenticate(connection, key)
    except Unauthenticated:
        return False
    return True


def exists(connection: Connection) -> bool:
    """Whether anyone at all would be let in."""
    return connection.execute(select(table.c.id).where(IS_LIVE).limit(1)).first() is not None


def find(connection: Connection) -> list[Key]:
    """Every key that was ever made, oldest first."""
    names = ("id", "project_id", "name", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at")
    columns: list[ColumnElement[Any]] = [*(table.c[name] for name in names), IS_LIVE]
    rows = connection.execute(select(*columns).order_by(table.c.created_at, table.c.id))
    return [Key(row[0], row[1], row[2], row[3] and tuple(row[3]), *row[4:]) for row in rows]


def revoke(connection: Connection, key_id: str) -> bool:
    """Refuse a key from now on; False if there was none of this id to refuse."""
    done = connection.execute(
        table.update().where(table.c.id == key_id, table.c.revoked_at.is_(None)).values(revoked_at=func.now())
    )
    return done.rowcount == 1


def scopes_of(names: Collection[str]) -> list[Scope]:
    """Scopes by their names. BadRequest for one that does not exist."""
    known = {scope.value for scope in Scope}
    if unknown := sorted(set(names) - known):
        raise BadRequest(f"There is no scope '{unknown[0]}'; there are {', '.join(sorted(known))}.")
    return [Scope(name) for name in names]


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
