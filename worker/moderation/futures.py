"""Futures made of futures. What is done with a result is done on the thread that brings it: keep it tiny."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def mapped(source: Future[T], function: Callable[[T], R]) -> Future[R]:
    """What `function` makes of the result; an error of either is the error."""
    made: Future[R] = Future()
    source.add_done_callback(lambda done: settle(made, lambda: function(done.result())))
    return made


def gathered(sources: Sequence[Future[T]]) -> Future[list[T]]:
    """All results in their order, once the last is there; the first error in that order is the error."""
    made: Future[list[T]] = Future()
    lock, left = Lock(), len(sources)

    def count(_: Future[T]) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = left == 0
        if is_last:
            settle(made, lambda: [source.result() for source in sources])

    if not sources:
        made.set_result([])
    for source in sources:
        source.add_done_callback(count)
    return made


def begun(function: Callable[[], Future[T]]) -> Future[T]:
    """The future that `function` gives, or a failed one where it raises."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001  whoever waits for the future hears of it
        failed: Future[T] = Future()
        failed.set_exception(error)
        return failed


def settle(future: Future[R], compute: Callable[[], R]) -> None:
    """Give a future what `compute` gives or raises, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(compute())
    except Exception as error:  # noqa: BLE001  whoever waits for the future hears of it
        future.set_exception(error)
