"""Sends what the outbox holds, in threads of its own: a slow endpoint holds up neither the sweeper nor others."""

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from jobs import database
from jobs.settings import Settings
from jobs.webhooks import outbox, sending, signing
from jobs.webhooks.outbox import Delivery
from jobs.webhooks.sending import NotDelivered

logger = logging.getLogger(__name__)

THREADS = 4
WAIT_SECONDS_MIN, WAIT_SECONDS_MAX = 5.0, 3_600.0

Post = Callable[[Delivery, dict[str, str], bytes], None]


class Sender:
    """Tries every message that is due, at most one at a time for each endpoint, until it is stopped."""

    def __init__(self, engine: Engine, settings: Settings, post: Post | None = None) -> None:
        self._engine = engine
        self._settings = settings
        self._post = post or self._post_by_http
        self._stop = threading.Event()
        self._free = threading.Semaphore(THREADS)
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop; a try under way ends within its time limit, and is counted if it does."""
        self._stop.set()
        self._thread.join(timeout=sending.TOTAL_SECONDS + 5)

    def _run(self) -> None:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="webhook") as pool:
            while not self._stop.is_set():
                try:
                    while self._send_one(pool):
                        pass
                except SQLAlchemyError as error:
                    logger.warning("webhooks not read", extra={"reason": str(error)})
                self._stop.wait(self._settings.sweep_seconds * random.uniform(0.7, 1.3))  # noqa: S311

    def _send_one(self, pool: ThreadPoolExecutor) -> bool:
        """Hand the next message to a free thread; False if none is due."""
        while not self._free.acquire(timeout=0.5):
            if self._stop.is_set():
                return False
        with self._lock:
            busy = set(self._busy)
        try:
            delivery = None if self._stop.is_set() else database.run(self._engine, lambda c: outbox.claim(c, busy=busy))
        except BaseException:
            self._free.release()
            raise
        if delivery is None:
            self._free.release()
            return False
        with self._lock:
            self._busy.add(delivery.webhook_id)
        pool.submit(self._deliver, delivery)
        return True

    def _deliver(self, delivery: Delivery) -> None:
        try:
            failure = self._failure_of(delivery)
            wait = wait_seconds(delivery.tries)
            database.run(self._engine, lambda c: outbox.settle(c, delivery, failure=failure, wait_seconds=wait))
        except SQLAlchemyError as error:
            logger.warning("webhook not settled", extra={"event": delivery.event_id, "reason": str(error)})
        finally:
            with self._lock:
                self._busy.discard(delivery.webhook_id)
            self._free.release()

    def _failure_of(self, delivery: Delivery) -> str | None:
        """Try once; None if the endpoint has it."""
        facts = {"event": delivery.event_id, "webhook": delivery.webhook_id, "tries": delivery.tries}
        body, now = delivery.body(), int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "gristmill",
            "webhook-id": delivery.event_id,
            "webhook-timestamp": str(now),
            "webhook-signature": signing.sign(delivery.secret, delivery.event_id, now, body),
        }
        try:
            self._post(delivery, headers, body)
        except NotDelivered as error:
            logger.warning("webhook not delivered", extra={**facts, "reason": str(error)})
            return str(error)
        logger.info("webhook delivered", extra=facts)
        return None

    def _post_by_http(self, delivery: Delivery, headers: dict[str, str], body: bytes) -> None:
        sending.post(delivery.url, headers, body, allows_private=self._settings.webhooks_to_private_addresses)


def wait_seconds(tries: int) -> float:
    """How long to wait after so many tries: twice as long each time, up to an hour, never all at once."""
    doubled = WAIT_SECONDS_MIN * 2.0 ** min(tries - 1, 20)
    return min(doubled, WAIT_SECONDS_MAX) * random.uniform(0.5, 1.5)  # noqa: S311
