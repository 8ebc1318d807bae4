"""/v1/models: the names that may stand in a request."""

from jobs import database, models
from jobs.api.auth import ByCaller
from jobs.api.services import WithServices
from jobs.contract.model import Model, ModelList


def find(services: WithServices, _: ByCaller) -> ModelList:
    """Every model served here, also under its other names."""
    known, served = database.run(services.engine, lambda c: (models.find(c), services.served.models(c)))
    found = models.meant(known, services.settings.model_aliases)
    return ModelList(data=[_model(model, name, served) for name, model in sorted(found.items())])


def get(model_id: str, services: WithServices, _: ByCaller) -> Model:
    """One model; its name may contain slashes."""
    aliases = services.settings.model_aliases
    model, served = database.run(
        services.engine, lambda c: (models.get(c, model_id, aliases), services.served.models(c))
    )
    return _model(model, model_id, served)


def _model(model: models.Model, name: str, served: frozenset[str]) -> Model:
    waiting_for = None if model.name in served else "a worker that serves it; there is none now"
    return Model(id=name, created=int(model.created_at.timestamp()), waiting_for=waiting_for)
