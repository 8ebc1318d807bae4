"""/v1/models: the names that may stand in a request."""

from jobs import database, models
from jobs.api.auth import ByCaller
from jobs.api.services import WithServices
from jobs.contract.model import Model, ModelList


def find(services: WithServices, _: ByCaller) -> ModelList:
    """Every model served here."""
    return ModelList(data=[_model(model) for model in database.run(services.engine, models.find)])


def get(model_id: str, services: WithServices, _: ByCaller) -> Model:
    """One model; its name may contain slashes."""
    return _model(database.run(services.engine, lambda c: models.get(c, model_id)))


def _model(model: models.Model) -> Model:
    return Model(id=model.name, created=int(model.created_at.timestamp()))
