"""The log: one line an event, whatever a library or a caller puts into it."""

import logging

from jobs.logs import Lines


def line(message: str, *, exception: Exception | None = None, **facts: object) -> str:
    caught = (type(exception), exception, None) if exception else None
    record = logging.LogRecord("jobs.x", logging.INFO, __file__, 1, message, (), caught)
    record.__dict__.update(facts)
    return Lines("%(levelname)s %(name)s %(message)s").format(record)


def test_facts_stand_behind_the_event_as_name_and_value() -> None:
    assert line("batch began", lines=24, model="tiny") == "INFO jobs.x batch began lines=24 model='tiny'"


def test_a_message_of_several_lines_is_one_line() -> None:
    assert line("No broker.\nTrying again in 2 s.\n") == "INFO jobs.x No broker. Trying again in 2 s."


def test_a_callers_control_characters_are_escaped() -> None:
    assert line("found \0 and \x1b[2J", given="\r\nINFO forged") == (
        "INFO jobs.x found \\x00 and \\x1b[2J given='\\r\\nINFO forged'"
    )


def test_facts_stand_before_a_traceback() -> None:
    first, *rest = line("task failed", exception=ValueError("why"), task="pump").splitlines()
    assert first == "INFO jobs.x task failed task='pump'"
    assert rest[-1] == "ValueError: why"
