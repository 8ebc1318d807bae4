"""`gristmill up`: a whole Gristmill in the foreground."""

import shlex
from pathlib import Path

import click

from gristmill import operate
from gristmill.client import Client
from gristmill.commands import settings as commands
from worker.model import list_damaged

FOREVER_SECONDS = 3600.0
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--model", "models", multiple=True, metavar="NAME", help="Serve this model; default: all installed.")
@click.option("--verbose", is_flag=True, help="Show the logs of all processes.")
def up(host: str, port: int, models: tuple[str, ...], verbose: bool) -> None:
    """Run everything on this machine until Ctrl-C: servers, API and a worker for each model."""
    settings = commands.read_quietly()
    names = operate.installed(settings, models)
    for damage in [] if models else list_damaged(operate.models_dir(settings)):
        commands.say(f"{damage.name} is left out: {damage}.")
    operate.refuse_taken_port(host, port)
    key_file = settings.data_dir / "api-key"
    known = operate.kept_key(key_file)
    try:
        with operate.operation(settings, say=commands.say, is_verbose=verbose) as running:
            running.start("api", "api", "--host", host, "--port", str(port))
            running.start_workers(names)
            url = _url(host, port)
            with Client(url, running.key) as client:
                running.wait_until(client.is_healthy)
            new_key = running.key if running.key != known else None
            click.echo(_welcome(url, new_key, key_file, names[0]))
            while True:
                running.rest(FOREVER_SECONDS)
    except KeyboardInterrupt:
        commands.say("Stopped.")


def _url(host: str, port: int) -> str:
    reached = WILDCARDS.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _welcome(url: str, new_key: str | None, key_file: Path, model: str) -> str:
    """What to do next. The key is shown once, where it is new; a shell finds it in its file."""
    shown = f"kept in {key_file}" if new_key is None else f"{new_key} (shown once; kept in {key_file})"
    body = f'{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user", "content": "Say hello."}}]}}'
    return (
        f"Gristmill is ready (Ctrl-C stops it).\n\n"
        f"  URL      {url}/v1\n"
        f"  API key  {shown}\n"
        f"  Page     {url}\n"
        f"  Logs     {key_file.parent / 'logs'}\n\n"
        f"Try it:\n"
        f'  curl {url}/v1/chat/completions -H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})" \\\n'
        f"    -H 'Content-Type: application/json' -d '{body}'"
    )
