"""A worker without a model: it takes lines from the real ledger by the real statements and answers each by script.

The last message of a line is what the worker shall do: `fail` is refused, `wait` is not answered at all, `cut`
is published only in part, and anything else comes back in capitals.
"""

import threading
from typing import Self
from uuid import UUID

import orjson
from sqlalchemy import Connection, Engine

from jobs import batches, database, export, fairness, intake, leases, results, workers
from jobs.batches import Batch
from jobs.contract.errors import envelope_json
from jobs.errors import BadRequest
from jobs.leases import Lease, Line
from jobs.results import Result, Usage
from jobs.settings import Settings
from jobs.states import BatchState
from jobs.streams import Publisher

PRIORITY_MAX = 32_767
PAUSE_SECONDS = 0.02
WAIT, FAIL, CUT = "wait", "fail", "cut"


class ScriptedWorker:
    """Ingests, answers and finalizes until it is left."""

    def __init__(self, ledger: Engine, settings: Settings, *, model: str) -> None:
        self._ledger, self._settings, self._model = ledger, settings, model
        self._shares = fairness.Shares()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scripted worker")
        assert settings.broker_url
        self._publisher = Publisher(settings.broker_url)
        self._failures: list[BaseException] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._publisher.close()
        assert not self._failures, self._failures

    def _run(self) -> None:
        try:
            owner = database.run(self._ledger, lambda c: workers.register(c, kind="model", model=self._model))
            while not self._stop.wait(PAUSE_SECONDS):
                self._move_batches(owner)
                while (lease := database.run(self._ledger, lambda c: self._claim(c, owner))) is not None:
                    self._answer(lease)
        except BaseException as error:  # noqa: BLE001  told by __exit__
            self._failures.append(error)

    def _move_batches(self, owner: UUID) -> None:
        for batch_id in database.run(self._ledger, lambda c: batches.in_states(c, BatchState.VALIDATING)):
            intake.ingest(self._ledger, batch_id, owner=owner, settings=self._settings)
        ended = (BatchState.FINALIZING, BatchState.CANCELLING)
        for batch_id in database.run(self._ledger, lambda c: batches.in_states(c, *ended)):
            export.finalize(self._ledger, batch_id, owner=owner, settings=self._settings)

    def _claim(self, connection: Connection, owner: UUID) -> Lease | None:
        best = self._shares.choose(fairness.candidates(connection, self._model, priority_max=PRIORITY_MAX))
        if best is None:
            return None
        claimed = leases.claim(connection, batch_id=best.batch_id, owner=owner, chunks=1, deadline_seconds=60)
        return claimed[0] if claimed else None

    def _answer(self, lease: Lease) -> None:
        batch = database.run(self._ledger, lambda c: batches.by_id(c, lease.batch_id))
        if batch is None:
            return
        lines = database.run(self._ledger, lambda c: leases.unanswered(c, lease))
        answers = [answer for line in lines if (answer := self._answer_line(batch, line)) is not None]
        database.run(self._ledger, lambda c: results.flush(c, lease, answers))
        database.run(self._ledger, lambda c: batches.close_if_answered(c, lease.batch_id))

    def _answer_line(self, batch: Batch, line: Line) -> Result | None:
        body = orjson.loads(line.text)["body"]
        said = body["messages"][-1]["content"]
        if said == WAIT:
            return None
        if said == FAIL:
            refusal = BadRequest("This line fails.", code="scripted", param="messages")
            return Result(line.line_no, refusal.status, envelope_json(refusal))
        texts = [said.upper() for _ in range(body.get("n") or 1)]
        if batch.is_direct and body.get("stream"):
            self._publish(batch.public_id, texts, is_cut=said == CUT)
        return Result(line.line_no, 200, completion(line, body["model"], texts), Usage(3, 1, 2))

    def _publish(self, request_id: str, texts: list[str], *, is_cut: bool) -> None:
        for choice, text in enumerate(texts):
            for start in range(0, len(text), 3):
                if not (is_cut and start):
                    self._publisher.publish(request_id, choice, text[start : start + 3], start=start)


def completion(line: Line, model: str, texts: list[str]) -> str:
    """JSON of a `chat.completion` that says `texts`."""
    message = {"role": "assistant", "refusal": None, "annotations": []}
    return orjson.dumps(
        {
            "id": f"chatcmpl-{line.custom_id}",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": model,
            "choices": [
                {"index": index, "message": {**message, "content": text}, "logprobs": None, "finish_reason": "stop"}
                for index, text in enumerate(texts)
            ],
            "usage": {
                "prompt_tokens": 3,
                "completion_tokens": 2,
                "total_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 0,
                    "audio_tokens": 0,
                    "accepted_prediction_tokens": 0,
                    "rejected_prediction_tokens": 0,
                },
            },
            "service_tier": "default",
            "system_fingerprint": "fp_scripted",
        }
    ).decode()
