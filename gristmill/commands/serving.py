"""The parts of a Gristmill, one process each, for operators who start them by their own means."""

import contextlib
import ipaddress
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import click

from gristmill import operate
from gristmill.commands import settings as commands
from gristmill.faults import Fault
from jobs import database, keys, logs
from jobs import migrate as migrations
from jobs.settings import Settings

PARENT_SECONDS = 1.0
GRACE_SECONDS = 10

parent_pid = click.option("--parent-pid", type=int, hidden=True, help="End when this process is no longer our parent.")


@click.command()
def migrate() -> None:
    """Bring the database's tables up to this version."""
    with operate.servers(commands.read_quietly(), commands.say) as (settings, _):
        assert settings.database_url is not None
        migrations.upgrade(settings.database_url)
    commands.say("The database is up to date.")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--uds", type=click.Path(path_type=Path), help="Listen on this unix socket instead.")
@parent_pid
def api(host: str, port: int, uds: Path | None, parent_pid: int | None) -> None:
    """Serve the API."""
    import uvicorn

    from jobs.api.app import create_app
    from jobs.api.connections import Connection
    from jobs.hints import Hints

    settings = _settled("api")
    _end_with(parent_pid)
    assert settings.database_url is not None
    assert settings.broker_url is not None
    with contextlib.ExitStack() as ending:
        ledger = database.connect(settings.database_url, connections=settings.database_connections)
        ending.callback(ledger.dispose)
        migrations.check(ledger)
        if uds is None and not is_loopback(host) and not database.run(ledger, keys.exists):
            raise Fault(
                f"No key exists, so nobody could use the API on {host}; "
                "make one with: gristmill keys create --name NAME"
            )
        if uds is None:
            operate.refuse_taken_port(host, port)
        hints = Hints(settings.broker_url)
        ending.callback(hints.close)
        # When uvicorn has shut down it sends itself the signal that told it to: by default SIGTERM would end us there.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        uvicorn.run(
            create_app(ledger, hints, settings),
            host=host,
            port=port,
            uds=str(uds) if uds else None,
            http=Connection,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )


@click.command()
@click.option("--model", metavar="NAME", help="Answer lines for this model.")
@click.option("--io", "is_io", is_flag=True, help="Read input files and write output files.")
@parent_pid
def worker(model: str | None, is_io: bool, parent_pid: int | None) -> None:
    """Run one worker, for a model or for files, until it is told to stop."""
    if is_io == (model is not None):
        raise click.UsageError("Choose one of --model NAME and --io.")
    from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

    from worker import process

    settings = _settled("worker")
    # Its advice against root is about tasks sent as pickle; ours are ids in JSON.
    warnings.simplefilter("ignore", SecurityWarning)
    # On each loss of the broker, about tasks that are acknowledged late; ours are not.
    warnings.simplefilter("ignore", CPendingDeprecationWarning)
    _end_with(parent_pid)
    raise SystemExit(process.serve(settings, model=model, is_io=is_io))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _settled(command: str) -> Settings:
    """Settings that name both servers, and the log."""
    settings = commands.read()
    if not settings.database_url or not settings.broker_url:
        missing = "BROKER_URL" if settings.database_url else "DATABASE_URL"
        raise Fault(f"`gristmill {command}` needs {missing}; `gristmill up` brings servers of its own.")
    logs.configure(settings.log_level)
    return settings


def _end_with(parent: int | None) -> None:
    """End this process when its parent is gone, even by kill -9."""
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
