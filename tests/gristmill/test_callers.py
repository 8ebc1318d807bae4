"""`gristmill keys`, `projects` and `webhooks` on a real ledger, and who may be listened to from afar."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, text

from gristmill.cli import main
from gristmill.commands import up
from gristmill.embedded import Addresses
from jobs import database, keys
from jobs.errors import Forbidden
from jobs.keys import Limits, Scope


@pytest.fixture
def there(ledger: Engine, servers: Addresses, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The ledger, found by commands through the environment."""
    monkeypatch.setenv("DATABASE_URL", servers.database_url)
    monkeypatch.setenv("BROKER_URL", servers.broker_url)
    return ledger


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_key_is_printed_once_works_and_can_be_revoked(there: Engine) -> None:
    made = run("keys", "create", "--name", "ann", "--scope", "batches:read", "--requests-per-minute", "7")
    key = made.stdout.strip()
    caller = database.run(there, lambda c: keys.authenticate(c, key))
    assert caller.limits == Limits(requests_per_minute=7)
    with pytest.raises(Forbidden):
        caller.require(Scope.FILES_WRITE)
    listed = run("keys", "list").stdout
    assert "ann" in listed
    assert "batches:read" in listed
    assert "in use" in listed
    assert key.split("_", 2)[2] not in listed
    assert run("keys", "revoke", key).exit_code == 0
    assert not database.run(there, lambda c: keys.is_valid(c, key))
    assert "revoked" in run("keys", "list").stdout
    assert run("keys", "revoke", key).exit_code == 2


def test_a_key_may_end_by_itself(there: Engine) -> None:
    run("keys", "create", "--name", "bob", "--days", "3")
    assert "until 2" in run("keys", "list").stdout
    with there.begin() as connection:
        connection.execute(text("UPDATE api_key SET expires_at = now()"))
    assert "ended 2" in run("keys", "list").stdout
    assert run("keys", "create", "--name", "bob", "--days", "0").exit_code == 2


def test_a_project_gets_the_weight_that_it_is_given(there: Engine) -> None:
    weighed = run("projects", "weigh", "default", "3")
    assert (weighed.exit_code, weighed.stderr) == (0, "The project default has the weight 3.\n")
    assert run("projects", "list").stdout.split() == ["PROJECT", "WEIGHT", "default", "3"]
    assert run("projects", "weigh", "default", "0").exit_code == 2
    assert run("projects", "weigh", "unknown", "2").exit_code == 2


def test_a_webhook_is_added_listed_and_removed(there: Engine) -> None:
    made = run("webhooks", "add", "https://a.example/x", "--project", "new", "--event", "batch.failed")
    assert made.stdout.startswith("whsec_")
    listed = run("webhooks", "list").stdout
    assert "https://a.example/x" in listed
    assert made.stdout.strip() not in listed
    webhook_id = listed.splitlines()[1].split()[0]
    assert run("webhooks", "remove", webhook_id).exit_code == 0
    assert run("webhooks", "remove", webhook_id).exit_code == 2
    assert "no webhook" in run("webhooks", "list").stderr


def test_a_webhook_to_an_address_inside_is_refused_in_one_sentence(there: Engine) -> None:
    refused = run("webhooks", "add", "http://localhost/x")
    assert refused.exit_code == 2
    assert "https://" in refused.stderr
    assert "Traceback" not in refused.output


def test_without_a_key_the_api_listens_only_to_this_machine(there: Engine) -> None:
    """Port 1 cannot be had, so that a server that were let through would still not start."""
    refused = run("api", "--host", "0.0.0.0", "--port", "1")
    assert refused.exit_code == 2
    assert "No key exists" in refused.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_is_known_in_each_of_its_forms(host: str) -> None:
    from gristmill.commands import serving

    assert serving.is_loopback(host)
    assert not serving.is_loopback("0.0.0.0")
    assert not serving.is_loopback("example.com")


def test_what_up_prints_of_a_known_key_is_where_it_is_kept() -> None:
    again = up._welcome("http://127.0.0.1:8000", None, Path("my data/api-key"), "tiny")
    assert "API key  kept in my data/api-key\n" in again
    assert "\"Authorization: Bearer $(cat 'my data/api-key')\"" in again
    assert "API key  gm_1_a (shown once; " in up._welcome("http://h", "gm_1_a", Path("data/api-key"), "tiny")
