"""What comes out of a batch: its files, its faults, and the exit status that sums it up."""

import tempfile
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
        say("No line was run; mend the file and send it again.")
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


def refuse_bad_targets(output: Path, errors: Path | None, source: Path | None = None) -> None:
    """Fault where the files could not be written, before any work is done; folders that miss are made."""
    if errors is not None and _is_same(errors, output):
        raise Fault(f"{errors} is for the answers; name another file for the failed lines.")
    _refuse_bad_target(output, "the answers", source)
    if errors is not None:
        _refuse_bad_target(errors, "the failed lines", source)


def _refuse_bad_target(target: Path, contents: str, source: Path | None) -> None:
    if target.is_dir():
        raise Fault(f"{target} is a folder; name a file for {contents}.")
    if source is not None and _is_same(target, source):
        raise Fault(f"{target} is the input; name another file for {contents}.")
    if target.exists() and not target.is_file():  # a device or a pipe
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise Fault(f"{target} cannot be written: {error.strerror or error}.") from error


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def _fetch(client: Client, file_id: str | None, target: Path) -> None:
    if file_id is not None:
        client.download(file_id, target)
    else:  # no line was answered: the file that was asked for is there, and empty
        target.write_bytes(b"")
