"""The names of the models that this installation serves; what they are is the workers' business."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from jobs.errors import NotFound
from jobs.tables import model as table


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    created_at: datetime


def register(connection: Connection, names: Sequence[str]) -> None:
    """Enter the names that are new."""
    if names:
        connection.execute(insert(table).values([{"name": name} for name in names]).on_conflict_do_nothing())


def remove(connection: Connection, name: str) -> None:
    connection.execute(table.delete().where(table.c.name == name))


def find(connection: Connection) -> list[Model]:
    """Every model, by name."""
    return [Model(*row) for row in connection.execute(select(table.c.name, table.c.created_at).order_by(table.c.name))]


def get(connection: Connection, name: str) -> Model:
    """The model of this name. NotFound with OpenAI's code otherwise."""
    row = connection.execute(select(table.c.name, table.c.created_at).where(table.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"The model '{name}' does not exist", code="model_not_found", param="model")
    return Model(*row)
