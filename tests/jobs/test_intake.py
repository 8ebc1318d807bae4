"""What a file must be to become a batch, and what is told of one that is not."""

import orjson
import pytest
from sqlalchemy import Engine, text

from jobs import database, files, intake
from jobs.batches import Batch
from jobs.contract import limits
from jobs.states import BatchState
from tests.jobs import making

GOOD = making.line("good")


def faults(batch: Batch) -> list[tuple[object, object, object]]:
    assert batch.state is BatchState.FAILED
    assert batch.errors is not None
    return [(fault["code"], fault["param"], fault["line"]) for fault in batch.errors["data"]]  # type: ignore[attr-defined]


def test_every_faulty_line_is_told_with_its_number(ledger: Engine) -> None:
    batch = making.ingest(
        ledger,
        [
            GOOD,
            b"{not json",
            b'{"method":"POST","url":"/v1/chat/completions","body":{}}',
            GOOD,
            making.line("wrong url").replace(b"/v1/chat", b"/v1/wrong"),
            making.line("get").replace(b"POST", b"GET"),
            making.line("no model").replace(b'"model":"tiny",', b""),
            making.line("unknown", model="nobody"),
            making.line("streams", stream=True),
            b"[1]",
            making.line("nul\0"),
            b"[" * 10_000 + b"]" * 10_000,
            b'{"custom_id":"\\ud800"}',
            b'{"custom_id":"\xff"}',
            b'{"custom_id":"a\0b"}',
            making.line("number").replace(b'"number"', b"5"),
        ],
    )
    assert faults(batch) == [
        ("invalid_json_line", None, 2),
        ("missing_required_parameter", "custom_id", 3),
        ("missing_required_parameter", "body.model", 3),
        ("missing_required_parameter", "body.messages", 3),
        ("duplicate_custom_id", "custom_id", 4),
        ("invalid_url", "url", 5),
        ("invalid_method", "method", 6),
        ("missing_required_parameter", "body.model", 7),
        ("model_not_found", "body.model", 8),
        ("streaming_unsupported", "body.stream", 9),
        ("invalid_json_line", None, 10),
        ("invalid_value", "custom_id", 11),
        ("invalid_json_line", None, 12),
        ("invalid_json_line", None, 13),
        ("invalid_json_line", None, 14),
        ("invalid_json_line", None, 15),
        ("invalid_type", "custom_id", 16),
    ]
    assert making.scalar(ledger, "SELECT count(*) FROM request") == 0


def test_a_file_with_two_models_is_refused_at_the_lines_that_differ(ledger: Engine) -> None:
    with ledger.begin() as connection:
        connection.execute(text("INSERT INTO model (name) VALUES ('other')"))
    batch = making.ingest(ledger, [GOOD, making.line("b", model="other"), making.line("c")])
    assert faults(batch) == [("mismatched_model", "body.model", 2)]


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_told_as_such(ledger: Engine, content: bytes) -> None:
    batch = making.ingest(ledger, [content])
    assert faults(batch) == [("empty_file", None, None)]


def test_an_unknown_file_fails_the_batch(ledger: Engine) -> None:
    batch = making.create(ledger, "file-unknown")
    intake.ingest(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)
    assert faults(making.fetch(ledger, batch)) == [("invalid_request", "file_id", None)]


def test_bom_carriage_returns_blank_ends_and_odd_separators_are_taken(ledger: Engine) -> None:
    content = b"\xef\xbb\xbf" + making.line("a") + b"\r\n" + making.line("b", content="x\u2028y\u0085z") + b"\r\n\r\n"
    batch = making.ingest(ledger, [content])
    assert (batch.state, batch.total) == (BatchState.IN_PROGRESS, 2)


def test_a_line_too_long_costs_no_other_line_its_report(ledger: Engine) -> None:
    batch = making.ingest(ledger, [making.line("long", content="x" * 10_000_000), b"{", GOOD])
    assert faults(batch) == [("line_too_long", None, 1), ("invalid_json_line", None, 2)]


def test_lines_are_stored_as_they_were_sent(ledger: Engine) -> None:
    sent = making.line("a", content="\\u0000 NUL \u00e9 \U0001f600").replace(b'"tiny"', b'"tiny" ')
    making.ingest(ledger, [sent])
    assert making.scalar(ledger, "SELECT line FROM request") == sent.decode()


def test_a_batch_cancelled_while_its_file_is_read_stays_cancelled(ledger: Engine) -> None:
    batch = making.create(ledger, making.upload(ledger, GOOD).id)
    with ledger.begin() as connection:
        connection.execute(text("UPDATE batch SET state = 'cancelling', outcome = 'cancelled'"))
    intake.ingest(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)
    assert making.fetch(ledger, batch).state is BatchState.CANCELLING
    assert making.scalar(ledger, "SELECT count(*) FROM request") == 0


def test_a_second_ingest_does_nothing(ledger: Engine) -> None:
    batch = making.ingest(ledger, [GOOD])
    intake.ingest(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)
    assert making.scalar(ledger, "SELECT count(*) FROM request") == 1


def test_lines_that_begin_alike_are_worked_together(ledger: Engine) -> None:
    lines = [making.line(f"{n}", content=("A" if n % 2 else "B") * 200 + str(n)) for n in range(8)]
    batch = making.ingest(ledger, lines)
    (first,) = making.claim(ledger, batch, making.worker(ledger))
    assert first.line_numbers == (1, 3, 5, 7)


def test_every_fault_of_a_line_is_told(ledger: Engine) -> None:
    bad = {"custom_id": "good", "method": "GET", "url": 5, "body": {"model": "nobody", "stream": True}}
    batch = making.ingest(ledger, [GOOD, orjson.dumps(bad), b"{}"])
    assert faults(batch) == [
        ("invalid_method", "method", 2),
        ("invalid_type", "url", 2),
        ("missing_required_parameter", "body.messages", 2),
        ("streaming_unsupported", "body.stream", 2),
        ("duplicate_custom_id", "custom_id", 2),
        ("model_not_found", "body.model", 2),
        ("missing_required_parameter", "custom_id", 3),
        ("missing_required_parameter", "method", 3),
        ("missing_required_parameter", "url", 3),
        ("missing_required_parameter", "body", 3),
    ]


def test_of_very_many_faults_the_first_are_kept_and_the_rest_counted(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FAULTS_KEPT_MAX", 5)
    batch = making.ingest(ledger, [b"{"] * 3 + [b"{}"] * 2)
    assert [code for code, _, _ in faults(batch)] == [
        *["invalid_json_line"] * 3,
        *["missing_required_parameter"] * 2,
        "more_errors",
    ]
    assert batch.errors is not None
    assert "6 more faults" in str(batch.errors["data"])


def test_a_file_of_too_many_lines_is_refused(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINES_MAX", 2)
    batch = making.ingest(ledger, [making.line(f"r{n}") for n in range(3)])
    assert faults(batch) == [("too_many_tasks", None, None)]


def test_a_file_of_blank_lines_is_not_read_to_its_end(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there may be requests, since half a gigabyte of them would take minutes."""
    monkeypatch.setattr(limits, "LINES_MAX", 3)
    batch = making.ingest(ledger, [making.line("a"), b"", b"\r", b"", making.line("b")])
    assert batch.state is BatchState.IN_PROGRESS
    batch = making.ingest(ledger, [making.line("a"), b"", b" ", b"\r", b"", b"{"])
    assert faults(batch) == [("too_many_tasks", None, None)]


def test_a_file_deleted_while_it_is_read_makes_no_half_batch(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = making.create(ledger, making.upload(ledger, b"\n".join(making.line(f"r{n}") for n in range(9))).id)
    monkeypatch.setattr(files, "read", lambda _engine, _file_id: iter([making.line("r0") + b"\n"]))
    intake.ingest(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS)
    assert faults(making.fetch(ledger, batch)) == [("invalid_request", "file_id", None)]
    assert making.scalar(ledger, "SELECT count(*) FROM request") == 0


def test_a_file_that_is_damaged_fails_its_batch_and_is_not_read_for_ever(ledger: Engine) -> None:
    batch = making.create(ledger, making.upload(ledger, making.line("a")).id)
    database.run(ledger, lambda c: c.execute(text("UPDATE file_part SET packed = substr(packed, 1, 9)")))
    assert intake.ingest(ledger, batch.id, owner=making.worker(ledger), settings=making.SETTINGS) is None
    assert faults(making.fetch(ledger, batch)) == [("invalid_request", "file_id", None)]
