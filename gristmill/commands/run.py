"""`gristmill run`: a file of requests in, a file of answers out; interrupted at any moment, it goes on."""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import click

from gristmill import delivery, operate, screen
from gristmill.client import ApiError, Client
from gristmill.commands import settings as commands
from gristmill.embedded import account as accounts
from gristmill.embedded import folders
from gristmill.faults import EXIT_INTERRUPTED
from gristmill.input_file import InputFile, prepare
from gristmill.operate import Operation
from jobs.contract.batch import Batch
from jobs.states import BatchState

Answer = TypeVar("Answer")

WINDOW = "30d"  # nobody waits for a deadline of ours but the person who started it
MARK = "gristmill_run"  # the metadata by which a batch is found again: the digest of its input
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 90
CONFLICT = 409
LATEST = 100  # batches that are asked whether they compete
DEAD = (BatchState.FAILED, BatchState.CANCELLING, BatchState.CANCELLED, BatchState.EXPIRED)


@click.command()
@click.argument("file", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the answers go.")
@click.option("--errors", type=click.Path(path_type=Path), help="Where failed lines go; default: OUT.errors.jsonl.")
@click.option("--model", metavar="NAME", help="Ask this model, whatever the lines say.")
@click.option("--fresh", is_flag=True, help="Answer all lines anew, even if they were answered before.")
@click.pass_context
def run(ctx: click.Context, file: Path, output: Path, errors: Path | None, model: str | None, fresh: bool) -> None:
    """Answer a file of requests on this machine; nothing else needs to run.

    Stopped at any moment, the same command goes on where it stopped. Exit status: 0 all lines answered, 1 some
    failed, 2 could not run, 130 stopped by Ctrl-C.
    """
    settings = commands.read_quietly()
    delivery.refuse_bad_targets(output, errors, file)
    try:
        with operate.stopped_by_signals(), prepare(file, model=model, scratch=settings.data_dir) as prepared:
            names = operate.installed(settings, [prepared.model]) if prepared.model else []
            with screen.display() as display, operate.operation(settings, say=display.say) as running:
                job = _Run(running, display, prepared, file.name, names)
                status = job.deliver_to(output, errors, is_fresh=fresh)
    except KeyboardInterrupt:
        how = "without --fresh " if fresh else ""
        commands.say(f"Stopped; run the same command again {how}to go on.")
        status = EXIT_INTERRUPTED
    ctx.exit(status)


class _Run:
    """One input file on its way through an API of its own."""

    def __init__(
        self, running: Operation, display: screen.Display, prepared: InputFile, filename: str, models: list[str]
    ) -> None:
        self._running = running
        self._display = display
        self._input = prepared
        self._filename = filename
        self._models = models

    def deliver_to(self, output: Path, errors: Path | None, *, is_fresh: bool) -> int:
        """Answer every line and write the files; the exit status."""
        with _socket(self._running.settings.data_dir) as socket:
            self._running.start("api-of-run", "api", "--uds", str(socket))
            with Client("http://gristmill", self._running.key, socket=socket) as client:
                self._running.wait_until(client.is_healthy)
                batch = self._finished(client, self._batch(client, is_fresh=is_fresh))
                return self._patiently(lambda: delivery.deliver(client, batch, output, errors, self._display.say))

    def _finished(self, client: Client, batch: Batch) -> Batch:
        """Start the workers, unless nothing is left to do, and wait."""
        if not delivery.is_over(batch):
            latest = self._patiently(lambda: list(islice(client.batches(), LATEST)))
            if sentence := competition(latest, batch.id):
                self._display.say(sentence)
            self._running.start_workers(self._models)
        batch_id = batch.id
        while not delivery.is_over(batch):
            self._display.show(batch)
            self._running.rest(LOOK_SECONDS)
            self._running.refuse_hopeless()
            batch = self._patiently(lambda: client.retrieve(batch_id))
        self._display.show(batch)
        return batch

    def _batch(self, client: Client, *, is_fresh: bool) -> Batch:
        """The batch of this input: one made before, or else a new one."""
        former, dead = (None, secrets.token_hex(8)) if is_fresh else self._former(client)
        if former is not None:
            return former
        key = f"run-{self._input.digest}-{dead}"
        try:
            return self._patiently(lambda: self._create(client, key))
        except ApiError as error:
            if error.status != CONFLICT:
                raise
        # Another run of the same input was faster, or our own order arrived though its answer was lost.
        former, _ = self._former(client)
        if former is None:
            raise ApiError("Another run of the same input has just ended; start again.")
        return former

    def _create(self, client: Client, idempotency_key: str) -> Batch:
        self._input.content.seek(0)
        file_id = client.upload(self._input.content, self._filename)
        mark = {MARK: self._input.digest}
        return client.create(file_id, window=WINDOW, idempotency_key=idempotency_key, metadata=mark)

    def _former(self, client: Client) -> tuple[Batch | None, str]:
        """The newest batch of this input that is of use, and how many are not."""
        dead = 0
        for batch in self._patiently(lambda: list(client.batches())):
            if (batch.metadata or {}).get(MARK) != self._input.digest:
                continue
            if batch.status not in DEAD and self._has_files(client, batch):
                return batch, str(dead)
            dead += 1
        return None, str(dead)

    def _has_files(self, client: Client, batch: Batch) -> bool:
        files = [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id is not None]
        return self._patiently(lambda: all(client.has_file(file_id) for file_id in files))

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again while the API is being started again."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return ask()
            except ApiError as error:
                if not error.is_passing or time.monotonic() > deadline:
                    raise
            self._running.refuse_hopeless()
            self._running.rest(LOOK_SECONDS)


@contextmanager
def _socket(data_dir: Path) -> Iterator[Path]:
    """Where the API of one run listens, in a folder that only this user may enter; the API removes it if we cannot."""
    name = f"{secrets.token_hex(4)}.sock"
    socket = folders.for_socket(folders.servers(data_dir) / "runs", name, accounts.current()) / name
    try:
        yield socket
    finally:
        socket.unlink(missing_ok=True)


def competition(latest: Iterable[Batch], batch_id: str) -> str | None:
    """What to tell of other batches that share the workers, such as those of runs that were stopped."""
    others = [one for one in latest if one.id != batch_id and one.status == BatchState.IN_PROGRESS.value]
    if not others:
        return None
    lines = sum(one.request_counts.total - one.request_counts.completed - one.request_counts.failed for one in others)
    named = others[0].id if len(others) == 1 else f"{len(others)} batches"
    return (
        f"The workers also answer {named} of before, {lines} lines; "
        "to end that, start `gristmill up` and then run: gristmill cancel BATCH"
    )
