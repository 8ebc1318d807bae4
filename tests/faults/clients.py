"""Clients of a system in which everything fails: they try again until they are answered, and count what comes back."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import orjson

from jobs.contract.batch import ENDPOINT
from tests.jobs import making

ENDED = {"completed", "failed", "cancelled", "expired"}
LINES = (10, 600)
PATIENCE_SECONDS = 240
POLL_SECONDS = 0.2


@dataclass
class Seen:
    """What all clients saw."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    again: int = 0
    broken: list[str] = field(default_factory=list)

    def accuse(self, what: str) -> None:
        print(f"BROKEN: {what}", flush=True)
        self.broken.append(what)


class Client:
    """One caller of the API."""

    def __init__(self, socket: Path, key: str, seen: Seen) -> None:
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)),
            base_url="http://api",
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
        )
        self._seen = seen

    def close(self) -> None:
        self._http.close()

    def order_until(self, end: Event, seed: int) -> None:
        """One batch after another."""
        chance, number = random.Random(seed), 0
        while not end.is_set():
            number += 1
            size = int(LINES[0] * (LINES[1] / LINES[0]) ** chance.random())
            self.order(f"{seed}-{number}", size)

    def order(self, name: str, size: int) -> None:
        """A batch from its upload to the last line of its results."""
        self.see_to_its_end(name, size, self.begin(name, size))

    def begin(self, name: str, size: int, *, content: str = "SLOW") -> dict[str, Any]:
        """Upload lines and make a batch of them; the batch."""
        lines = [making.line(f"{name}-{n}", content=f"{content} {name} {n}") for n in range(size)]
        form = {"file": ("in.jsonl", b"\n".join(lines))}
        file = self.ask(lambda: self._http.post("/v1/files", data={"purpose": "batch"}, files=form)).json()
        order = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        headers = {"Idempotency-Key": name}
        made: dict[str, Any] = self.ask(lambda: self._http.post("/v1/batches", json=order, headers=headers)).json()
        return made

    def see_to_its_end(self, name: str, size: int, batch: dict[str, Any]) -> None:
        """Wait for a batch, and count what comes back."""
        path, deadline = f"/v1/batches/{batch['id']}", time.monotonic() + PATIENCE_SECONDS
        while batch["status"] not in ENDED:
            if time.monotonic() > deadline:
                self._seen.accuse(f"{batch['id']} is still {batch['status']} after {PATIENCE_SECONDS} s")
                return
            time.sleep(POLL_SECONDS)
            batch = self.ask(lambda: self._http.get(path)).json()
        self._count(name, size, batch)

    def listed(self) -> set[str]:
        """The ids of all batches that the caller is shown."""
        found: set[str] = set()
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            after = {"after": page["last_id"]} if found else {}
            page = self.ask(lambda after=after: self._http.get("/v1/batches", params=after)).json()  # type: ignore[misc]
            found |= {batch["id"] for batch in page["data"]}
        return found

    def cancel(self, batch_id: str) -> None:
        """Ask that a batch be given up; that it has ended already is an answer too."""
        self.ask(lambda: self._http.post(f"/v1/batches/{batch_id}/cancel"), admitted=(200, 409))

    def ask(self, send: Callable[[], httpx.Response], admitted: tuple[int, ...] = (200,)) -> httpx.Response:
        """Send until there is an answer; no fault of a server may be told as one of ours, or as 500."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = send()
                if answer.status_code in admitted:
                    return answer
                if answer.status_code != 503:
                    self._seen.accuse(f"{answer.request.url.path} was answered {answer.status_code}: {answer.text}")
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    self._seen.accuse(f"nobody answers: {error!r}")
                    raise
            self._seen.again += 1
            time.sleep(POLL_SECONDS)

    def _count(self, name: str, size: int, batch: dict[str, Any]) -> None:
        """Each line was answered once, or is named once among those that were not, unless none was read yet."""
        self._seen.outcomes[batch["status"]] += 1
        if batch["status"] == "cancelled" and batch["request_counts"]["total"] == 0:
            return
        lines = [line for kind in ("output_file_id", "error_file_id") for line in self._lines(batch[kind])]
        names = [line["custom_id"] for line in lines]
        answered = sum(line["error"] is None and line["response"]["status_code"] == 200 for line in lines)
        if sorted(names) != sorted(f"{name}-{n}" for n in range(size)):
            self._seen.accuse(f"{batch['id']}: of {size} lines {len(names)} came back, {len(set(names))} different")
        if batch["status"] == "completed" and answered != size:
            self._seen.accuse(f"{batch['id']} is completed, and {size - answered} of its lines failed")
        self._seen.answered += answered

    def _lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        content = self.ask(lambda: self._http.get(f"/v1/files/{file_id}/content")).content
        return [orjson.loads(line) for line in content.splitlines()]
