"""Callers' keys: `gm_<id>_<secret>`, of which only the SHA-256 of the secret is kept.

A plain hash suits 256 random bits; password hashing would only offer a way to exhaust the CPU.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, text

from jobs.errors import Unauthenticated
from jobs.tables import api_key as table

DEFAULT_PROJECT = "default"
UNKNOWN_SHA256 = bytes(32)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: everything a request touches belongs to this project."""

    project_id: str
    key_id: str


def create(connection: Connection, *, name: str, project_id: str = DEFAULT_PROJECT) -> str:
    """Make a key, and its project if that is new; the only time the whole key can be seen."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    ensure_project(connection, project_id)
    connection.execute(
        table.insert().values(id=key_id, project_id=project_id, name=name, secret_sha256=_sha256(secret))
    )
    return f"gm_{key_id}_{secret}"


def ensure_project(connection: Connection, project_id: str) -> None:
    connection.execute(text("INSERT INTO project (id) VALUES (:id) ON CONFLICT DO NOTHING"), {"id": project_id})


def authenticate(connection: Connection, key: str | None) -> Caller:
    """The caller behind a key. Unauthenticated if it is missing, malformed, unknown or revoked.

    An unknown id costs the same comparison as a wrong secret, so the time tells neither from the other.
    """
    if not key:
        raise Unauthenticated(
            "You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
        )
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    row = None
    if prefix == "gm" and key_id.isalnum() and key_id.isascii():
        row = connection.execute(
            select(table.c.project_id, table.c.secret_sha256).where(table.c.id == key_id, table.c.revoked_at.is_(None))
        ).one_or_none()
    expected = row.secret_sha256 if row is not None else UNKNOWN_SHA256
    if not hmac.compare_digest(expected, _sha256(secret)) or row is None:
        raise Unauthenticated("Incorrect API key provided.", code="invalid_api_key")
    return Caller(project_id=row.project_id, key_id=key_id)


def is_valid(connection: Connection, key: str) -> bool:
    """Whether a key would be let in."""
    try:
        authenticate(connection, key)
    except Unauthenticated:
        return False
    return True


def revoke(connection: Connection, key_id: str) -> bool:
    """Refuse a key from now on; False if there was none of this id to refuse."""
    done = connection.execute(
        table.update().where(table.c.id == key_id, table.c.revoked_at.is_(None)).values(revoked_at=func.now())
    )
    return done.rowcount == 1


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
