"""`gristmill models`: the models of this machine."""

import sys
import tempfile
from pathlib import Path
from typing import TextIO

import click

from gristmill import operate, screen
from gristmill.commands import settings as commands
from worker import model as worker_models
from worker.engine import quality


@click.group()
def models() -> None:
    """Add, list, check and remove models."""


@models.command()
@click.argument("source")
@click.option("--name", help="What to call it; default: the source's own name.")
@click.option(
    "--precision",
    help="int8 or fp32 for CPUs, bf16, bf16-fp8, bf16-int8 or fp16 for NVIDIA GPUs; the fastest of this machine if "
    "not given.",
)
@click.option(
    "--chat-template",
    type=click.File(encoding="utf-8"),
    help="A Jinja file to ask the model by, instead of its own template.",
)
def add(source: str, name: str | None, precision: str | None, chat_template: TextIO | None) -> None:
    """Fetch and convert a model.

    SOURCE is a known name, such as smollm2-135m, a .gguf file, a folder as Hugging Face has it (config.json,
    safetensors, tokenizer.json), a folder or .onnx file of onnxruntime-genai or of onnx-community, or the id of one
    on the hub, OWNER/NAME or OWNER/NAME/FOLDER.
    """
    folder = worker_models.add(
        source,
        models_dir=operate.models_dir(commands.read_quietly()),
        name=name,
        precision=precision,
        chat_template=chat_template.read() if chat_template else None,
        progress=commands.say,
    )
    click.echo(folder.name)


@models.command(name="list")
@click.pass_context
def list_(context: click.Context) -> None:
    """Show the models that are installed, and what is wrong with those that are damaged: then it exits with 1."""
    directory = operate.models_dir(commands.read_quietly())
    found, damaged = worker_models.list_models(directory), worker_models.list_damaged(directory)
    rows = [(folder.name, str(folder.manifest.precision), screen.size(folder.size_bytes)) for folder in found]
    rows += [(damage.name, "damaged", "-") for damage in damaged]
    if rows:
        click.echo(screen.table(("NAME", "PRECISION", "SIZE"), sorted(rows)))
    else:
        commands.say(operate.no_model(directory))
    for damage in damaged:
        commands.say(str(damage))
    if damaged:
        context.exit(1)


@models.command()
@click.argument("name")
def show(name: str) -> None:
    """Show what is known of a model."""
    folder = worker_models.open_named(name, operate.models_dir(commands.read_quietly()))
    manifest, spec = folder.manifest, folder.spec
    facts = {
        "name": folder.name,
        "source": manifest.source,
        "architecture": f"{spec.architecture}, {spec.layers} layers of {spec.hidden}, {spec.vocabulary:,} tokens",
        "context": f"{spec.context_length:,} tokens",
        "precision": f"{manifest.precision}, as it came" if manifest.is_ready_made else manifest.precision,
        "size": screen.size(folder.size_bytes),
        "added": manifest.created_at,
        "fingerprint": folder.fingerprint,
        "folder": str(folder.path),
    }
    for fact, value in facts.items():
        click.echo(f"{fact:<13} {value}")


@models.command()
@click.argument("name")
@click.option("--files-only", is_flag=True, help="Do not measure what the precision costs, which takes minutes.")
def verify(name: str, files_only: bool) -> None:
    """Read all of a model's files, then measure what its precision costs.

    The model writes 20,000 tokens of English beside the same model in fp32, which is made for it.
    """
    directory = operate.models_dir(commands.read_quietly())
    folder = worker_models.verify(worker_models.open_named(name, directory).path)
    click.echo(f"{folder.name} is whole.")
    if folder.manifest.is_ready_made:
        commands.say("It came as an ONNX graph, so there is nothing to hold its precision against.")
        return
    if files_only or folder.manifest.precision is worker_models.Precision.FP32:
        return
    with tempfile.TemporaryDirectory(prefix="gristmill-") as scratch:
        reference = worker_models.add(
            folder.manifest.reference,
            Path(scratch),
            precision="fp32",
            chat_template=folder.chat_template(),
            progress=commands.say,
        )
        found = _measure(folder, reference)
    click.echo(
        f"{folder.manifest.precision} against fp32, {found.tokens:,} tokens of English: "
        f"perplexity {found.perplexity:.2f} against {found.reference_perplexity:.2f} ({found.perplexity_change:+.2%}), "
        f"mean divergence {found.divergence:.4f} nats, the same likeliest token {found.same_top:.1%}"
    )


def _measure(folder: worker_models.ModelFolder, reference: worker_models.ModelFolder) -> quality.Quality:
    with click.progressbar(length=1000, label="Writing", file=sys.stderr) as bar:
        return quality.measure(folder, reference, lambda done, of: bar.update(1000 * done // of - bar.pos))


@models.command()
@click.argument("name")
def remove(name: str) -> None:
    """Delete a model from this machine."""
    worker_models.remove(name, operate.models_dir(commands.read_quietly()))
    commands.say(f"{name} is removed.")
