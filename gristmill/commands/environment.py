"""`gristmill settings`: what may be set, what is, and what for."""

import os

import click

from jobs.settings import UNPREFIXED, Settings, environment_name

UNSHOWN = "..."  # an address may hold a password


@click.command()
def settings() -> None:
    """Show every setting with its value here, then what is wrong with them, if anything is."""
    defaults = Settings.read({})
    for field, knob in Settings.model_fields.items():
        name = environment_name(field)
        told = os.environ.get(name)
        if told and field in UNPREFIXED:
            told = UNSHOWN
        click.echo(f"{name}={told}" if told else f"{name}={_written(getattr(defaults, field))}  (default)")
        click.echo(f"    {knob.description}")
    Settings.read(os.environ)


def _written(default: object) -> str:
    """A default as the environment would spell it."""
    if isinstance(default, bool):
        return str(default).lower()
    return "" if default is None or default == {} else str(default)
