"""The names of the models that this installation serves; what they are is the workers' business."""

from collections.abc import Mapping, Sequence
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


def meant(models: Sequence[Model], aliases: Mapping[str, str]) -> dict[str, Model]:
    """The model that each name means, its own or another. A name of a model is never another's alias."""
    known = {model.name: model for model in models}
    return {alias: known[name] for alias, name in aliases.items() if name in known} | known


def get(connection: Connection, name: str, aliases: Mapping[str, str]) -> Model:
    """The model that a name means, an alias or its own. NotFound with OpenAI's code if there is none."""
    found = meant(find(connection), aliases).get(name)
    if found is None:
        raise NotFound(f"The model '{name}' does not exist", code="model_not_found", param="model")
    return found
