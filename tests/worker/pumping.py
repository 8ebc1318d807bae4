"""Pumps for tests: over a real ledger and a real engine, with hints that are only written down."""

from sqlalchemy import Engine as Ledger

from jobs.streams import Publisher
from tests.jobs import making
from worker import engine
from worker.chat import Chat
from worker.model import ModelFolder
from worker.moderation import ContentFilter
from worker.pump import Pump


class Heard:
    """Hints that are only written down."""

    def __init__(self) -> None:
        self.finalized: list[int] = []

    def finalize(self, batch_id: int) -> None:
        self.finalized.append(batch_id)


def pump_of(
    ledger: Ledger,
    inference: engine.Engine,
    folder: ModelFolder,
    *,
    publisher: Publisher | None = None,
    content_filter: ContentFilter | None = None,
) -> Pump:
    """A pump for the model `tiny`."""
    return Pump(
        ledger,
        inference,
        Chat(folder, context_tokens=inference.context_tokens, fingerprint="fp_test"),
        Heard(),  # type: ignore[arg-type]
        model="tiny",
        settings=making.SETTINGS,
        publisher=publisher,
        content_filter=content_filter,
    )
