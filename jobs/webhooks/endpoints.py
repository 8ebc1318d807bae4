"""A project's webhooks: which URL is told of which events, signed with which secret."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime

from sqlalchemy import Connection, select

from jobs.errors import BadRequest
from jobs.states import TERMINAL
from jobs.tables import webhook as table
from jobs.webhooks import addresses, signing
from jobs.webhooks.addresses import Refused

EVENTS = tuple(sorted(f"batch.{state.value}" for state in TERMINAL))


@dataclass(frozen=True, slots=True)
class Webhook:
    """One endpoint; its secret goes to whoever made it, and into every signature."""

    id: str
    project_id: str
    url: str
    secret: str
    events: tuple[str, ...]
    created_at: datetime


COLUMNS = [table.c[field.name] for field in fields(Webhook)]


def add(
    connection: Connection, project_id: str, url: str, *, events: Sequence[str] = EVENTS, allows_private: bool
) -> Webhook:
    """Make a webhook. BadRequest for a URL that may not be used, or an event that does not exist.

    What its host's name stands for is checked at each delivery, since that may change.
    """
    try:
        addresses.parse(url, allows_private=allows_private)
    except Refused as refused:
        raise BadRequest(str(refused), code="invalid_value", param="url") from None
    if unknown := sorted(set(events) - set(EVENTS)):
        raise BadRequest(f"There is no event '{unknown[0]}'; there are {', '.join(EVENTS)}.", code="invalid_value")
    row = connection.execute(
        table.insert()
        .values(
            id=f"wh_{secrets.token_hex(8)}",
            project_id=project_id,
            url=url,
            secret=signing.new_secret(),
            events=sorted(set(events)),
        )
        .returning(*COLUMNS)
    ).one()
    return _webhook(row)


def find(connection: Connection, project_id: str | None = None) -> list[Webhook]:
    """The webhooks of a project, or of all, oldest first."""
    query = select(*COLUMNS).order_by(table.c.created_at, table.c.id)
    if project_id is not None:
        query = query.where(table.c.project_id == project_id)
    return [_webhook(row) for row in connection.execute(query)]


def remove(connection: Connection, webhook_id: str) -> bool:
    """Delete a webhook and what it was still to be told; False if there was none."""
    return connection.execute(table.delete().where(table.c.id == webhook_id)).rowcount == 1


def _webhook(row: object) -> Webhook:
    values = {field.name: getattr(row, field.name) for field in fields(Webhook)}
    return Webhook(**values | {"events": tuple(values["events"])})
