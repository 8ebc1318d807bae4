"""Programs written for OpenAI's service, run unchanged against ours: by each major release, sync and async."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine

from jobs import database, models, webhooks
from tests.contract import script as contract_script
from tests.contract.scripted import ScriptedWorker

SCRIPT = Path(__file__).with_name("script.py")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "chat.py"


def delivery() -> dict[str, object]:
    """A webhook as it leaves the server."""
    event = {"id": "evt_1", "object": "event", "created_at": 1, "type": "batch.completed", "data": {"id": "batch_x"}}
    body, timestamp = json.dumps(event), int(time.time())
    signature = webhooks.sign(SECRET, "evt_1", timestamp, body.encode())
    headers = {"webhook-id": "evt_1", "webhook-timestamp": str(timestamp), "webhook-signature": signature}
    return {"body": body, "headers": headers}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A program of a user, who has nothing of ours."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI"))}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_program_for_openai_runs_unchanged(
    python: Path, kind: str, address: str, key: str, ledger: Engine, worker: ScriptedWorker
) -> None:
    database.run(ledger, lambda c: models.register(c, ["org/tiny"]))
    done = run(python, "-W", "error", SCRIPT, address, key, kind, SECRET, json.dumps(delivery()))
    assert done.returncode == 0, done.stdout + done.stderr
    version, *parts = done.stdout.split()
    assert version.split(".")[0] == python.parent.parent.name.removeprefix("openai-")
    assert parts == [part.__name__ for part in contract_script.PARTS]


def test_the_example_prints_what_the_model_says(python: Path, address: str, key: str, worker: ScriptedWorker) -> None:
    done = run(python, EXAMPLE, key, f"{address}/v1", "tiny")
    assert (done.returncode, done.stdout) == (0, "WHAT IS A GRIST MILL?\n"), done.stderr
