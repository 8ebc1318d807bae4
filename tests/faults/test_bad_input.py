"""Lines that mean harm or make no sense: an error for them, with their number, and nothing for the others."""

import pytest
from sqlalchemy import Engine

from jobs.states import BatchState
from tests.faults.system import System
from tests.jobs import making
from tests.memory import needs_proc, peak_kb

LINE = making.line("bad")
DEEP = 50_000
LONG = 100_000_000
RISE_KB_MAX = 60_000


def having(field: bytes) -> bytes:
    """A line whose body has one field more."""
    return LINE.removesuffix(b"}}") + b"," + field + b"}}"


NO_JSON = {
    "a zero byte": LINE.replace(b"Hello", b"\0"),
    "bytes that are no text": b"\xff\xfe\xff",
    "a byte that is no text": LINE.replace(b"Hello", b"H\xffllo"),
    "half a pair in the name": LINE.replace(b'"bad"', b'"\\ud800"'),
    "half a pair in the text": LINE.replace(b"Hello", b"\\ud800"),
    "no number": having(b'"temperature":NaN'),
    "a number too large": having(b'"temperature":1e999'),
    "less than any number": having(b'"temperature":-Infinity'),
    "an integer of 400 digits": having(b'"seed":' + b"9" * 400),
    "arrays without end": b"[" * DEEP,
    "arrays in arrays": b"[" * DEEP + b"]" * DEEP,
    "objects in objects": having(b'"metadata":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "a schema without a floor": having(b'"response_format":' + b'{"items":' * DEEP + b"{}" + b"}" * DEEP),
    "an array": b"[1]",
    "a number": b"7",
    "a string": b'"x"',
    "null": b"null",
    "half a line": LINE[:-2],
    "two in one": LINE + LINE,
}
REFUSED = {name: (line, "invalid_json_line") for name, line in NO_JSON.items()} | {
    "a zero in the name": (LINE.replace(b'"bad"', b'"b\\u0000d"'), "invalid_value"),
    "a name without end": (making.line("b" * 10_000), "invalid_value"),
    "a name that another has": (making.line("first"), "duplicate_custom_id"),
    "nothing": (b"{}", "missing_required_parameter"),
    "no messages": (LINE.replace(b"messages", b"massages"), "missing_required_parameter"),
    "a model that there is not": (making.line("bad", model="unknown"), "model_not_found"),
    "another method": (LINE.replace(b"POST", b"GET"), "invalid_method"),
    "another address": (LINE.replace(b"/v1/chat", b"/v1/cat"), "invalid_url"),
    "a stream": (having(b'"stream":true'), "streaming_unsupported"),
}
TAKEN = {
    "a zero in the text": (LINE.replace(b"Hello", b"a\\u0000b"), 200),
    "a key twice": (having(b'"n":2,"n":1'), 200),
    "a billion choices": (having(b'"n":1000000000'), 400),
    "less than no tokens": (having(b'"max_tokens":-1'), 400),
    "a temperature too high": (having(b'"temperature":3'), 400),
    "bans without end": (having(b'"stop":["' + b'","'.join([b"x"] * 10_000) + b'"]'), 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_line_that_makes_no_sense_is_named_by_its_number_and_no_other_is(ledger: Engine, name: str) -> None:
    line, code = REFUSED[name]
    batch = making.ingest(ledger, [making.line("first"), line, making.line("last")])
    assert batch.state is BatchState.FAILED
    assert batch.errors
    faults = batch.errors["data"]
    assert isinstance(faults, list)
    assert {(fault["line"], fault["code"]) for fault in faults} == {(2, code)}


@needs_proc
def test_a_line_without_end_is_named_and_takes_no_memory(system: System) -> None:
    reader = system.start("io")
    assert reader.pid
    first = making.create(system.ledger, making.upload(system.ledger, LINE).id)
    system.until(lambda: making.fetch(system.ledger, first).state is BatchState.IN_PROGRESS)
    before = peak_kb(reader.pid)
    content = b"\n".join([making.line("first"), b'{"custom_id":"' + b"x" * LONG + b'"}', making.line("last")])
    batch = making.create(system.ledger, making.upload(system.ledger, content).id)
    system.until(lambda: making.fetch(system.ledger, batch).state is BatchState.FAILED)
    errors = making.fetch(system.ledger, batch).errors
    assert errors
    (fault,) = errors["data"]  # type: ignore[misc]
    assert fault["line"] == 2  # type: ignore[index]
    assert peak_kb(reader.pid) - before < RISE_KB_MAX


def test_a_line_that_cannot_be_answered_fails_alone(system: System) -> None:
    lines = {name: line.replace(b'"bad"', b'"%s"' % name.encode()) for name, (line, _) in TAKEN.items()}
    good = {f"good {number}": making.line(f"good {number}") for number in range(4)}
    batch = making.ingest(system.ledger, [*good.values(), *lines.values()])
    assert batch.state is BatchState.IN_PROGRESS
    system.start_all()
    ended = system.until_ended(batch)
    found = [
        (line["custom_id"], line["response"]["status_code"])  # type: ignore[index]
        for file_id in (ended.output_file_id, ended.error_file_id)
        for line in making.content(system.ledger, file_id)
    ]
    expected = {name: status for name, (_, status) in TAKEN.items()} | dict.fromkeys(good, 200)
    assert sorted(found) == sorted(expected.items())  # type: ignore[type-var]
    assert system.faults() == []
