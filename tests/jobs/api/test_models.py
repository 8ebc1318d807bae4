"""Which names of models are known: their own, and those that the operator gives to them."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from jobs import database, intake, models, workers
from jobs.api.app import create_app
from jobs.settings import Settings, SettingsError
from jobs.states import BatchState
from tests.jobs import making
from tests.jobs.api.conftest import RecordedHints

ALIASES = "gpt-4o-mini=tiny, org/small=tiny,tiny=second,lost=nobody"
ASKED = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def named(ledger: Engine, hints: RecordedHints, key: str) -> Iterator[TestClient]:
    """A server on which `tiny` has other names."""
    app = create_app(ledger, hints, Settings.read({"GRISTMILL_MODEL_ALIASES": ALIASES}))
    with TestClient(app, headers={"authorization": f"Bearer {key}"}) as client:
        yield client


def test_models_are_listed_under_all_their_names(named: TestClient) -> None:
    listed = named.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["gpt-4o-mini", "org/small", "tiny"]
    assert len({model["created"] for model in listed}) == 1
    assert named.get("/v1/models/org/small").json() == listed[1]


def test_a_name_for_a_model_that_is_not_there_means_nothing(named: TestClient) -> None:
    assert named.get("/v1/models/lost").json()["error"]["code"] == "model_not_found"


def test_an_alias_never_takes_the_name_of_a_model(ledger: Engine, named: TestClient) -> None:
    database.run(ledger, lambda c: models.register(c, ["second"]))
    assert database.run(ledger, lambda c: models.get(c, "tiny", {"tiny": "second"})).name == "tiny"
    assert [model["id"] for model in named.get("/v1/models").json()["data"]].count("tiny") == 1


def test_a_batch_may_ask_for_a_model_by_any_of_its_names(ledger: Engine) -> None:
    lines = [making.line("a", model="gpt-4o-mini"), making.line("b", model="tiny"), making.line("c", model="org/small")]
    batch = making.create(ledger, making.upload(ledger, b"\n".join(lines)).id)
    settings = Settings.read({"GRISTMILL_MODEL_ALIASES": ALIASES})
    intake.ingest(ledger, batch.id, owner=making.worker(ledger), settings=settings)
    begun = making.fetch(ledger, batch)
    assert (begun.state, begun.model, begun.total) == (BatchState.IN_PROGRESS, "tiny", 3)


def test_without_the_setting_such_a_name_is_unknown(ledger: Engine) -> None:
    batch = making.ingest(ledger, [making.line("a", model="gpt-4o-mini")])
    assert batch.state is BatchState.FAILED


def test_a_completion_under_another_name_goes_to_the_worker_of_the_model(
    named: TestClient, ledger: Engine, hints: RecordedHints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.api.chat.WAIT_SECONDS_MAX", 0)
    assert named.post("/v1/chat/completions", json={"model": "gpt-4o-mini", **ASKED}).status_code == 503
    assert hints.sent == [("pump", "tiny")]


@pytest.mark.parametrize("told", ["gpt-4o-mini", "a=", "=b", "a=b,a=c"])
def test_aliases_that_cannot_be_read_stop_the_start(told: str) -> None:
    with pytest.raises(SettingsError, match=r"GRISTMILL_MODEL_ALIASES=.*not as 'alias=model,alias=model'"):
        Settings.read({"GRISTMILL_MODEL_ALIASES": told})


def test_a_model_without_a_worker_says_so_until_there_is_one(
    ledger: Engine, named: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.workers.FRESH_SECONDS", 0.0)

    def waiting_for() -> set[str | None]:
        listed = named.get("/v1/models").json()["data"]
        return {model["waiting_for"] for model in (*listed, named.get("/v1/models/gpt-4o-mini").json())}

    with ledger.begin() as connection:
        connection.execute(text("DELETE FROM worker"))
    assert waiting_for() == {"a worker that serves it; there is none now"}
    database.run(ledger, lambda c: workers.register(c, kind="model", model="tiny"))
    assert waiting_for() == {None}


def test_a_batch_without_a_worker_for_its_model_says_so_until_there_is_one(
    ledger: Engine, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.workers.FRESH_SECONDS", 0.0)
    batch = making.ingest(ledger, [making.line("a")])

    def waiting_for() -> list[str | None]:
        one, (listed,) = client.get(f"/v1/batches/{batch.public_id}").json(), client.get("/v1/batches").json()["data"]
        return [one["waiting_for"], listed["waiting_for"]]

    with ledger.begin() as connection:
        connection.execute(text("DELETE FROM worker"))
    assert waiting_for() == ["a worker that serves the model 'tiny'; there is none now"] * 2
    database.run(ledger, lambda c: workers.register(c, kind="model", model="other"))
    assert waiting_for() != [None, None]
    database.run(ledger, lambda c: workers.register(c, kind="model", model="tiny"))
    assert waiting_for() == [None, None]
    assert client.post(f"/v1/batches/{batch.public_id}/cancel").json()["waiting_for"] is None
