"""The settings of a command, and its voice."""

import os
from pathlib import Path

import click

from jobs import logs
from jobs.settings import Settings, environment_name


def read() -> Settings:
    """The settings of the environment, with a data folder that means the same everywhere."""
    settings = Settings.read(os.environ)
    data_dir = Path(os.path.abspath(settings.data_dir.expanduser()))  # noqa: PTH100 a symlink stays what it is
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(
            f"{environment_name('data_dir')}={data_dir} cannot be used: {error.strerror or error}."
        ) from error
    return settings.model_copy(update={"data_dir": data_dir})


def read_quietly() -> Settings:
    """The same for commands whose own sentences are all a person wants to read."""
    logs.configure("CRITICAL")
    return read()


def say(sentence: str) -> None:
    """Tell the person at the terminal; standard output is only for what was asked."""
    click.echo(sentence, err=True)
