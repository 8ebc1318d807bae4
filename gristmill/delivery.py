"""What comes out of a batch: its files, its faults, and the exit status that sums it up."""

from collections.abc import Callable, Iterator
from pathlib import Path

from gristmill.client import Client
from gristmill.faults import EXIT_COULD_NOT_RUN, EXIT_SOME_FAILED, Fault
from jobs.contract.batch import Batch
from jobs.states import TERMINAL, BatchState

FAULTS_SHOWN = 20


def is_over(batch: Batch) -> bool:
    """Whether nothing about it will change."""
    return batch.status in {state.value for state in TERMINAL}


def deliver(client: Client, batch: Batch, output: Path, errors: Path | None, say: Callable[[str], None]) -> int:
    """Fetch what there is of a batch that is over; the exit status of the command."""
    if batch.status == BatchState.FAILED.value:
        for sentence in faults(batch):
            say(sentence)
        return EXIT_COULD_NOT_RUN
    failures = errors or errors_beside(output)
    _fetch(client, batch.output_file_id, output)
    if batch.error_file_id is not None:
        _fetch(client, batch.error_file_id, failures)
    elif errors is None:
        failures.unlink(missing_ok=True)  # of an earlier batch: it would belie this one
    counts = batch.request_counts
    ending = "" if batch.status == BatchState.COMPLETED.value else f" (the batch is {batch.status})"
    say(f"{counts.completed} of {counts.total} lines answered{ending}: {output}")
    if batch.error_file_id is not None:
        say(f"{counts.failed} failed: {failures}")
    is_whole = batch.status == BatchState.COMPLETED.value and not counts.failed
    return 0 if is_whole else EXIT_SOME_FAILED


def faults(batch: Batch) -> Iterator[str]:
    """Why a batch was refused, the first of many in full."""
    found = batch.errors.data if batch.errors else []
    for fault in found[:FAULTS_SHOWN]:
        place = f"line {fault.line}: " if fault.line is not None else ""
        yield f"{place}{fault.message} ({fault.code})"
    if len(found) > FAULTS_SHOWN:
        yield f"and {len(found) - FAULTS_SHOWN} more"


def errors_beside(output: Path) -> Path:
    """`answers.jsonl` has its failed lines in `answers.errors.jsonl`."""
    return output.with_name(f"{output.name.removesuffix('.jsonl')}.errors.jsonl")


def refuse_bad_target(output: Path, *inputs: Path) -> None:
    """Fault where the answers could not be written, before any work is done."""
    if output.is_dir():
        raise Fault(f"{output} is a folder; name a file for the answers.")
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise Fault(f"{output} is the input; name another file for the answers.")
    output.parent.mkdir(parents=True, exist_ok=True)


def _fetch(client: Client, file_id: str | None, target: Path) -> None:
    if file_id is not None:
        client.download(file_id, target)
    else:  # no line was answered: the file that was asked for is there, and empty
        target.write_bytes(b"")
