"""`gristmill webhooks`: who is told that a batch has ended."""

import click
from sqlalchemy import Connection

from gristmill import screen
from gristmill.commands import settings as commands
from gristmill.commands.ledger import ledger
from gristmill.faults import Fault
from jobs import database, keys
from jobs import webhooks as endpoints


@click.group()
def webhooks() -> None:
    """Add, list and remove the URLs that are told of the end of batches."""


@webhooks.command()
@click.argument("url")
@click.option("--project", default=keys.DEFAULT_PROJECT, show_default=True, help="Whose batches it is told of.")
@click.option(
    "--event", "events", multiple=True, type=click.Choice(endpoints.EVENTS), help="Tell only of this; default: all."
)
def add(url: str, project: str, events: tuple[str, ...]) -> None:
    """Send signed messages to URL from now on, and print their secret; it cannot be shown again."""
    allows_private = commands.read_quietly().webhooks_to_private_addresses
    with ledger(is_upgraded=True) as engine:

        def make(connection: Connection) -> endpoints.Webhook:
            keys.ensure_project(connection, project)
            return endpoints.add(
                connection, project, url, events=events or endpoints.EVENTS, allows_private=allows_private
            )

        made = database.run(engine, make)
    commands.say(f"The webhook {made.id} is told of {', '.join(made.events)}. Its secret:")
    click.echo(made.secret)


@webhooks.command(name="list")
def list_() -> None:
    """Show every webhook, without its secret."""
    with ledger() as engine:
        found = database.run(engine, endpoints.find)
    if not found:
        commands.say("There is no webhook; add one with: gristmill webhooks add URL")
        return
    rows = [(one.id, one.project_id, one.url, " ".join(one.events)) for one in found]
    click.echo(screen.table(("ID", "PROJECT", "URL", "EVENTS"), rows))


@webhooks.command()
@click.argument("webhook_id", metavar="ID")
def remove(webhook_id: str) -> None:
    """Tell this webhook nothing more, not even what waits to be told."""
    with ledger() as engine:
        if not database.run(engine, lambda c: endpoints.remove(c, webhook_id)):
            raise Fault(f"There is no webhook '{webhook_id}'.")
    commands.say(f"The webhook {webhook_id} is removed.")
