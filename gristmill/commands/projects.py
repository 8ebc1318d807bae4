"""`gristmill projects`: who competes for the workers, and with which weight."""

import click
from sqlalchemy import select, update

from gristmill import screen
from gristmill.commands import settings as commands
from gristmill.commands.ledger import ledger
from gristmill.faults import Fault
from jobs import database
from jobs.tables import project as table


@click.group()
def projects() -> None:
    """List projects and set their shares."""


@projects.command(name="list")
def list_() -> None:
    """Show every project with its weight."""
    with ledger() as engine:
        found = database.run(engine, lambda c: c.execute(select(table.c.id, table.c.weight).order_by(table.c.id)).all())
    click.echo(screen.table(("PROJECT", "WEIGHT"), [(row.id, str(row.weight)) for row in found]))


@projects.command()
@click.argument("project")
@click.argument("weight", type=click.IntRange(1, 1_000_000))
def weigh(project: str, weight: int) -> None:
    """Give PROJECT lines in proportion to WEIGHT where several have work of the same priority; each begins with 1."""
    with ledger() as engine:
        statement = update(table).where(table.c.id == project).values(weight=weight)
        if not database.run(engine, lambda c: c.execute(statement).rowcount):
            raise Fault(f"There is no project '{project}'; the first key of a project makes it.")
    commands.say(f"The project {project} has the weight {weight}.")
