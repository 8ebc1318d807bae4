"""The Celery app, and the hints it carries: "look here". A hint never carries work.

A hint may be lost, doubled, late or reordered with no effect but delay: everything that must happen can
be found again in Postgres.
"""

import logging
import queue
import threading

from celery import Celery

logger = logging.getLogger(__name__)

IO_QUEUE = "io"
WAITING_MAX = 10_000


def model_queue(model: str) -> str:
    """The queue of the workers that serve `model`."""
    return f"infer.{model}"


def create_app(broker_url: str) -> Celery:
    """A Celery app that speaks to `broker_url`; it connects when it is first used."""
    app = Celery("gristmill", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        accept_content=["json"],
        task_serializer="json",
        task_acks_late=False,  # a lost hint costs a delay, a doubled one nothing: no need to keep it
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_pool_acquire_timeout=5,
        # A blip of the broker must not touch work that Postgres leased to us.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        task_create_missing_queues=True,
        broker_transport_options={
            "global_keyprefix": "gristmill:",
            "visibility_timeout": 3600,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 15,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
        },
    )
    return app


class Hints:
    """Sends hints from a thread of its own: the caller never waits for the broker and never fails by it."""

    def __init__(self, broker_url: str) -> None:
        self._app = create_app(broker_url)
        self._waiting: queue.Queue[tuple[str, str, object] | None] = queue.Queue(WAITING_MAX)
        self._thread = threading.Thread(target=self._send_all, name="hints", daemon=True)
        self._thread.start()

    def ingest(self, batch_id: int) -> None:
        """A batch waits for its file to be read."""
        self._put("ingest", IO_QUEUE, batch_id)

    def pump(self, model: str) -> None:
        """There are lines for `model`."""
        self._put("pump", model_queue(model), model)

    def finalize(self, batch_id: int) -> None:
        """A sealed batch waits for its files."""
        self._put("finalize", IO_QUEUE, batch_id)

    def close(self, timeout_seconds: float = 2) -> None:
        """Send what waits, for a moment, and stop."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(timeout_seconds)

    def _put(self, task: str, queue_name: str, argument: object) -> None:
        try:
            self._waiting.put_nowait((task, queue_name, argument))
        except queue.Full:
            logger.warning("hint dropped", extra={"task": task})

    def _send_all(self) -> None:
        while (hint := self._waiting.get()) is not None:
            task, queue_name, argument = hint
            try:
                self._app.send_task(task, args=[argument], queue=queue_name, retry=False)
            except Exception as error:  # noqa: BLE001  the broker's library raises more than it says; a hint may be lost
                logger.warning("hint lost", extra={"task": task, "reason": repr(error)})
