"""How every process writes its log: one line an event, the facts behind it as `name=value`."""

import logging
import re
import sys

PLAIN = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
# Celery's own fields, which say nothing to an operator.
NOISE = frozenset({"data", "color_message"})
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
CHATTY = (
    "httpx",
    "httpcore",
    "alembic",
    "celery.app.trace",
    "celery.worker.consumer.consumer",
    "celery.worker.strategy",
    "kombu",
    "amqp",
)


class Lines(logging.Formatter):
    """`2026-11-21 04:00:00,123 INFO jobs.intake batch began batch=7 lines=24`, control characters escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        facts = {name: value for name, value in record.__dict__.items() if name not in PLAIN | NOISE}
        shown = "".join(f" {name}={value!r}" for name, value in facts.items())
        line = " ".join(filter(None, super().formatMessage(record).split("\n")))
        return CONTROL.sub(lambda found: repr(found[0])[1:-1], line) + shown


def configure(level: str) -> None:
    """Send the log of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
