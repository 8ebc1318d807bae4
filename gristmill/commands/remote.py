"""`submit`, `status`, `results`, `cancel`: batches on a server that runs."""

from datetime import datetime
from itertools import islice
from pathlib import Path

import click

from gristmill import delivery, operate, screen
from gristmill.client import Client
from gristmill.commands import settings as commands
from gristmill.faults import Fault
from gristmill.input_file import prepare
from jobs.contract.batch import Batch

SHOWN_MAX = 50

url = click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server is.")
key = click.option("--key", help="Your key; default: the one that `gristmill up` keeps.")


@click.command()
@click.argument("file", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.option("--window", default="24h", show_default=True, help="How long it may take, such as 15m, 24h or 7d.")
@click.option("--model", metavar="NAME", help="Ask this model, whatever the lines say.")
@url
@key
def submit(file: Path, window: str, model: str | None, url: str, key: str | None) -> None:
    """Send a file of requests and print the id of its batch."""
    settings = commands.read_quietly()
    with prepare(file, model=model, scratch=settings.data_dir) as prepared, _client(url, key) as client:
        batch = client.create(client.upload(prepared.content, file.name), window=window, metadata={})
    click.echo(batch.id)


@click.command()
@click.argument("batch_id", metavar="[BATCH]", required=False)
@url
@key
def status(batch_id: str | None, url: str, key: str | None) -> None:
    """Show a batch, or list the latest."""
    with _client(url, key) as client:
        if batch_id is not None:
            _show(client.retrieve(batch_id))
            return
        found = list(islice(client.batches(), SHOWN_MAX + 1))
    if not found:
        commands.say("There is no batch yet.")
        return
    rows = [(batch.id, batch.status, _lines(batch), batch.model or "", _time(batch.created_at)) for batch in found]
    click.echo(screen.table(("BATCH", "STATUS", "LINES", "MODEL", "CREATED"), rows[:SHOWN_MAX]))
    if len(rows) > SHOWN_MAX:
        commands.say(f"Older than these {SHOWN_MAX} are not shown.")


@click.command()
@click.argument("batch_id", metavar="BATCH")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the answers go.")
@click.option("--errors", type=click.Path(path_type=Path), help="Where failed lines go; default: OUT.errors.jsonl.")
@url
@key
@click.pass_context
def results(ctx: click.Context, batch_id: str, output: Path, errors: Path | None, url: str, key: str | None) -> None:
    """Fetch what a finished batch has answered."""
    delivery.refuse_bad_targets(output, errors)
    with _client(url, key) as client:
        batch = client.retrieve(batch_id)
        if not delivery.is_over(batch):
            raise Fault(f"The batch is not finished: {batch.status.replace('_', ' ')}, {_lines(batch)} lines.")
        ctx.exit(delivery.deliver(client, batch, output, errors, commands.say))


@click.command()
@click.argument("batch_id", metavar="BATCH")
@url
@key
def cancel(batch_id: str, url: str, key: str | None) -> None:
    """Stop a batch; what it has answered can still be fetched."""
    with _client(url, key) as client:
        commands.say(f"{batch_id} is {client.cancel(batch_id).status}.")


def _client(url: str, key: str | None) -> Client:
    kept = commands.read_quietly().data_dir / "api-key"
    given = key or operate.kept_key(kept)
    if not given:
        raise Fault(f"No key: give one with --key, or start `gristmill up`, which keeps one in {kept}.")
    return Client(url, given)


def _show(batch: Batch) -> None:
    facts = {
        "batch": batch.id,
        "status": batch.status,
        "model": batch.model or "",
        "lines": _lines(batch),
        "failed": str(batch.request_counts.failed),
        "tokens": f"{batch.usage.input_tokens} read, {batch.usage.output_tokens} written",
        "created": _time(batch.created_at),
        "expires": _time(batch.expires_at),
    }
    for fact, value in facts.items():
        click.echo(f"{fact:<8} {value}".rstrip())
    if batch.waiting_for:
        click.echo(f"It waits for {batch.waiting_for}.")
    for sentence in delivery.faults(batch):
        click.echo(sentence)


def _lines(batch: Batch) -> str:
    counts = batch.request_counts
    return f"{counts.completed + counts.failed}/{counts.total}"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
