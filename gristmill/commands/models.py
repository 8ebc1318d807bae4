"""`gristmill models`: the models of this machine."""

import click

from gristmill import operate, screen
from gristmill.commands import settings as commands
from worker import model as worker_models


@click.group()
def models() -> None:
    """Add, list, check and remove models."""


@models.command()
@click.argument("source")
@click.option("--name", help="What to call it; default: the source's own name.")
@click.option(
    "--precision", help="int8 or fp32 for CPUs, fp16 for NVIDIA GPUs; the fastest of this machine if not given."
)
def add(source: str, name: str | None, precision: str | None) -> None:
    """Fetch and convert a model. SOURCE is a known name, such as smollm2-135m, or a .gguf file."""
    folder = worker_models.add(
        source,
        models_dir=operate.models_dir(commands.read_quietly()),
        name=name,
        precision=precision,
        progress=commands.say,
    )
    click.echo(folder.name)


@models.command(name="list")
def list_() -> None:
    """Show the models that are installed, and what is wrong with those that are damaged."""
    directory = operate.models_dir(commands.read_quietly())
    found, damaged = worker_models.list_models(directory), worker_models.list_damaged(directory)
    if found:
        rows = [(folder.name, folder.manifest.precision, screen.size(folder.size_bytes)) for folder in found]
        click.echo(screen.table(("NAME", "PRECISION", "SIZE"), rows))
    elif not damaged:
        commands.say(operate.NO_MODEL)
    for damage in damaged:
        commands.say(str(damage))


@models.command()
@click.argument("name")
def show(name: str) -> None:
    """Show what is known of a model."""
    folder = worker_models.open_named(name, operate.models_dir(commands.read_quietly()))
    manifest = folder.manifest
    facts = {
        "name": folder.name,
        "source": manifest.source,
        "precision": manifest.precision,
        "size": screen.size(folder.size_bytes),
        "added": manifest.created_at,
        "fingerprint": folder.fingerprint,
        "folder": str(folder.path),
    }
    for fact, value in facts.items():
        click.echo(f"{fact:<12} {value}")


@models.command()
@click.argument("name")
def verify(name: str) -> None:
    """Read all of a model's files and compare them with what was written."""
    directory = operate.models_dir(commands.read_quietly())
    folder = worker_models.verify(worker_models.open_named(name, directory).path)
    click.echo(f"{folder.name} is whole.")


@models.command()
@click.argument("name")
def remove(name: str) -> None:
    """Delete a model from this machine."""
    worker_models.remove(name, operate.models_dir(commands.read_quietly()))
    commands.say(f"{name} is removed.")
