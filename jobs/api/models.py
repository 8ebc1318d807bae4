"""/v1/models: the names that may stand in a request."""

from jobs import database, models
from jobs.api.auth import ByCaller
from jobs.api.services import WithServices
from jobs.contract.model import Model, ModelList


def find(services: WithServices, _: ByCaller) -> ModelList:
    """Every model served here, also under its other names."""
    found = models.meant(database.run(services.engine, models.find), services.settings.model_aliases)
    return ModelList(data=[_model(model, name) for name, model in sorted(found.items())])


def get(model_id: str, services: WithServices, _: ByCaller) -> Model:
    """One model; its name may contain slashes."""
    aliases = services.settings.model_aliases
    return _model(database.run(services.engine, lambda c: models.get(c, model_id, aliases)), model_id)


def _model(model: models.Model, name: str) -> Model:
    return Model(id=name, created=int(model.created_at.timestamp()))
