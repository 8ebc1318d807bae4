"""How much one key may ask for, and one project keep: counted in Postgres, so that all API processes agree.

Where Postgres cannot be asked nothing is let in, since nothing could be done either. The caller owns the
transaction.
"""

from typing import Final
from uuid import UUID, uuid4

from sqlalchemy import (
    Connection,
    Integer,
    Interval,
    bindparam,
    extract,
    func,
    literal_column,
    or_,
    select,
    text,
)

from jobs import keys
from jobs.errors import TooMany
from jobs.keys import Caller
from jobs.tables import api_key

PERMIT_SECONDS = 900  # an upload that takes longer no longer counts: it may be that of a process that died
BUSY_RETRY_SECONDS = 60
FULL_RETRY_SECONDS = 3_600  # clients wait at most two minutes by themselves, so this means: do not

MINUTE: Final = literal_column("interval '1 minute'", Interval)
PER_MINUTE: Final = func.coalesce(api_key.c.requests_per_minute, bindparam("per_minute", type_=Integer))
COST: Final = MINUTE.op("/", return_type=Interval())(PER_MINUTE)
PAID_UNTIL: Final = func.greatest(api_key.c.paid_until, func.now()) + COST
PAY: Final = (
    api_key.update()
    .values(paid_until=PAID_UNTIL, last_used_at=func.now())
    .where(
        api_key.c.id == bindparam("key_id"),
        api_key.c.secret_sha256 == bindparam("sha256"),
        keys.IS_LIVE,
        text("set_config('synchronous_commit', 'off', true) = 'off'"),
        or_(api_key.c.paid_until.is_(None), func.now() + MINUTE >= PAID_UNTIL),
    )
    .returning(api_key.c.project_id, api_key.c.scopes, *keys.LIMITS)
)
WAIT: Final = select(extract("epoch", api_key.c.paid_until - func.now() + COST - MINUTE)).where(
    api_key.c.id == bindparam("key_id")
)


def admit(connection: Connection, key: str | None, *, requests_per_minute: int) -> Caller:
    """The caller behind a key, one request counted, in one statement where nothing speaks against it.

    `requests_per_minute` is for a key that has no limit of its own. Unauthenticated, as `keys.authenticate` tells it;
    TooMany, with the time to wait, once a minute's worth was made at once.

    Each request pays 1/n of a minute, and what is paid may lie at most a minute ahead: a bucket that holds
    one minute and fills all the time. That it is not written to disk at once may cost a crash some counts.

    Postgres compares the secrets' hashes in no constant time: whoever learns from it how far two hashes agree
    could not make a secret with such a hash.
    """
    named = keys.parts_of(key or "")
    if named is not None:
        values = {"key_id": named.id, "sha256": named.secret_sha256, "per_minute": requests_per_minute}
        row = connection.execute(PAY, values).one_or_none()
        if row is not None:
            return keys.caller_of(named.id, row)
    caller = keys.authenticate(connection, key)
    wait = connection.execute(WAIT, {"key_id": caller.key_id, "per_minute": requests_per_minute}).scalar()
    seconds, limit = max(float(wait or 0), 0), caller.limits.requests_per_minute or requests_per_minute
    raise TooMany(
        f"Rate limit reached for requests of this key: Limit {limit} per min. Please try again in {seconds:.3g}s.",
        code="rate_limit_exceeded",
        retry_seconds=seconds,
    )


def begin_upload(connection: Connection, key_id: str, *, uploads_at_once: int) -> UUID:
    """A permit to upload, to be given back by `end_upload`. TooMany if the key has as many as it may."""
    _one_at_a_time(connection, key_id)
    connection.execute(text("DELETE FROM upload_permit WHERE expires_at < now()"))
    held = connection.execute(
        text("SELECT count(*) FROM upload_permit WHERE key_id = :key_id"), {"key_id": key_id}
    ).scalar_one()
    if held >= uploads_at_once:
        raise TooMany(
            f"Too many uploads at once: this key has {held} under way, and may have {uploads_at_once}.",
            code="rate_limit_exceeded",
            retry_seconds=1,
        )
    permit = uuid4()
    connection.execute(
        text("""
            INSERT INTO upload_permit (id, key_id, expires_at)
            VALUES (:id, :key_id, now() + make_interval(secs => :seconds))
        """),
        {"id": permit, "key_id": key_id, "seconds": PERMIT_SECONDS},
    )
    return permit


def end_upload(connection: Connection, permit: UUID) -> None:
    connection.execute(text("DELETE FROM upload_permit WHERE id = :id"), {"id": permit})


def refuse_bytes(connection: Connection, project_id: str, *, more: int, stored_bytes: int) -> None:
    """TooMany if a project's files, with `more` bytes of another, would be larger than they may."""
    kept = connection.execute(
        text("SELECT coalesce(sum(size_bytes), 0) FROM file WHERE project_id = :project_id"), {"project_id": project_id}
    ).scalar_one()
    if kept + more > stored_bytes:
        raise TooMany(
            f"The files of this project have {kept} bytes, and with this one would have more than the "
            f"{stored_bytes} they may have. Delete some, or let them expire.",
            code="insufficient_quota",
            retry_seconds=FULL_RETRY_SECONDS,
        )


def refuse_batches(connection: Connection, key_id: str, *, open_batches: int) -> None:
    """TooMany if a key has more open batches than it may, the one made in this transaction among them."""
    _one_at_a_time(connection, key_id)
    found = connection.execute(
        text("""
            SELECT count(*) FROM batch
             WHERE key_id = :key_id AND state IN ('validating', 'in_progress', 'finalizing', 'cancelling')
        """),
        {"key_id": key_id},
    ).scalar_one()
    if found > open_batches:
        raise TooMany(
            f"Too many open batches: this key may have {open_batches}. Please try again once some have ended.",
            code="rate_limit_exceeded",
            retry_seconds=BUSY_RETRY_SECONDS,
        )


def has_room(connection: Connection, key_id: str, *, more: int, queued_lines: int) -> bool:
    """Whether a key may have `more` lines in progress; no other batch of it can pass by until the commit."""
    _one_at_a_time(connection, key_id)
    queued: int = connection.execute(
        text("SELECT coalesce(sum(total), 0) FROM batch WHERE key_id = :key_id AND state = 'in_progress'"),
        {"key_id": key_id},
    ).scalar_one()
    return queued + more <= queued_lines


def lines_of(connection: Connection, key_id: str) -> int | None:
    """How many lines a key may have in progress, where that was set for it."""
    found: int | None = connection.execute(
        text("SELECT queued_lines FROM api_key WHERE id = :key_id"), {"key_id": key_id}
    ).scalar()
    return found


def _one_at_a_time(connection: Connection, key_id: str) -> None:
    """Let transactions of one key count one after the other: two that count at once would both find room."""
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key_id, 0))"), {"key_id": key_id})
