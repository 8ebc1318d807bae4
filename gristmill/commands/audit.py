"""`gristmill audit`: whether the ledger is sound."""

import click

from gristmill import operate
from gristmill.commands import settings as commands
from gristmill.faults import EXIT_SOME_FAILED
from jobs import audit as auditing
from jobs import migrate


@click.command()
@click.pass_context
def audit(ctx: click.Context) -> None:
    """Look for lines that were lost, doubled or miscounted, and for batches that nobody moves.

    Prints each fault in a sentence. Changes nothing, and may be run at any time.
    """
    with operate.servers(commands.read_quietly(), commands.say) as (settings, _), operate.ledger(settings) as ledger:
        migrate.check(ledger)
        is_sound = True
        for fault in auditing.faults(ledger, settings):
            is_sound = False
            click.echo(fault)
    if is_sound:
        commands.say("The ledger is sound.")
    ctx.exit(0 if is_sound else EXIT_SOME_FAILED)
