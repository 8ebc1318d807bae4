"""`gristmill backup` and `gristmill restore`."""

from pathlib import Path

import click

from gristmill import backups, operate
from gristmill.commands import settings as commands
from gristmill.faults import Fault


@click.command()
@click.argument("target", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
def backup(target: Path) -> None:
    """Save files, batches, results and keys in FILE, as they are at one moment, while everything goes on."""
    with operate.servers(commands.read_quietly(), commands.say) as (settings, _):
        assert settings.database_url is not None
        size_bytes = backups.save(settings.database_url, target)
    commands.say(f"Saved in {target} ({size_bytes / 1e6:.1f} MB).")


@click.command()
@click.argument("source", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
def restore(source: Path) -> None:
    """Bring back what `gristmill backup` saved, into an empty database; nothing else may run on it meanwhile."""
    if not source.is_file():
        raise Fault(f"There is no file {source}.")
    with operate.servers(commands.read_quietly(), commands.say) as (settings, _):
        assert settings.database_url is not None
        backups.bring_back(settings.database_url, source)
    commands.say("Everything is back.")
