"""`gristmill keys`: the keys of callers."""

from datetime import datetime

import click

from gristmill import screen
from gristmill.commands import settings as commands
from gristmill.commands.ledger import ledger
from gristmill.faults import Fault
from jobs import database
from jobs import keys as api_keys

SCOPES = tuple(scope.value for scope in api_keys.Scope)


@click.group()
def keys() -> None:
    """Make, list and revoke the keys of callers."""


@keys.command()
@click.option("--name", required=True, help="Whose key it is, for your own records.")
@click.option("--project", default=api_keys.DEFAULT_PROJECT, show_default=True, help="What its batches belong to.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="What it may do; default: all.")
@click.option("--days", type=click.IntRange(1, 36_500), help="How long it lives; default: until it is revoked.")
@click.option("--requests-per-minute", type=click.IntRange(1), help="Instead of the setting of that name.")
@click.option("--uploads-at-once", type=click.IntRange(1), help="Instead of the setting of that name.")
@click.option("--open-batches", type=click.IntRange(1), help="Instead of the setting of that name.")
@click.option("--queued-lines", type=click.IntRange(1), help="Instead of the setting of that name.")
def create(name: str, project: str, scopes: tuple[str, ...], days: int | None, **limits: int | None) -> None:
    """Print a new key; it cannot be shown again."""
    chosen = api_keys.scopes_of(scopes) if scopes else None
    with ledger(is_upgraded=True) as engine:
        made = database.run(
            engine,
            lambda c: api_keys.create(
                c,
                name=name,
                project_id=project,
                scopes=chosen,
                limits=api_keys.Limits(**limits),
                lifetime_seconds=None if days is None else days * 86_400,
            ),
        )
    click.echo(made)


@keys.command(name="list")
def list_() -> None:
    """Show every key that was made, without its secret."""
    with ledger() as engine:
        found = database.run(engine, api_keys.find)
    if not found:
        commands.say("There is no key; make one with: gristmill keys create --name NAME")
        return
    rows = [
        (key.id, key.project_id, key.name, " ".join(key.scopes or ("all",)), _day(key.last_used_at), _state(key))
        for key in found
    ]
    click.echo(screen.table(("ID", "PROJECT", "NAME", "SCOPES", "LAST USED", "STATE"), rows))


@keys.command()
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """Refuse a key from now on. ID is the part between the underscores: gm_ID_..."""
    wanted = key_id.split("_")[1] if key_id.startswith("gm_") else key_id
    with ledger() as engine:
        if not database.run(engine, lambda c: api_keys.revoke(c, wanted)):
            raise Fault(f"There is no key '{wanted}' to revoke.")
    commands.say(f"The key {wanted} is refused from now on.")


def _day(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d}"


def _state(key: api_keys.Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if not key.is_live:
        return f"ended {_day(key.expires_at)}"
    return "in use" if key.expires_at is None else f"until {_day(key.expires_at)}"
