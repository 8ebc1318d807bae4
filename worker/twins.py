"""Lines that ask for the very same thing, computed once: one computation answers all that wait for it, and is
remembered for those that come later. Knows nothing of the ledger and nothing of text.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Final

import orjson

from worker.engine import Completion, Prompt

# What a body may say without any effect on its answer.
UNHEARD: Final = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    }
)
REMEMBERED_TOKENS: Final = 200_000  # some 10 MB
ANSWER_TOKENS_LEAST: Final = 32  # what the shortest answer counts, for all that is kept beside its tokens


def likeness(project_id: str, body: Mapping[str, object], prompt: Prompt) -> bytes | None:
    """Equal for lines whose answers cannot differ; None for a line that draws noise of its own.

    Its answer is decided by temperature 0 (or what comes to the same) or by a seed that the body gives. The
    tokens of the prompt count too: a template may write the day into it. Projects share nothing: that a line was
    answered from memory tells that someone asked it before.
    """
    if not prompt.sampling.is_greedy and body.get("seed") is None:
        return None
    heard = {name: value for name, value in body.items() if name not in UNHEARD}
    digest = hashlib.blake2b(orjson.dumps(heard, option=orjson.OPT_SORT_KEYS), digest_size=16)
    digest.update(orjson.dumps(project_id))
    digest.update(array("q", prompt.token_ids).tobytes())
    return digest.digest()


@dataclass(slots=True, eq=False)
class Shared:
    """One computation, and the lines that wait for it."""

    priority: int
    waiting: list[Future[list[Completion]]] = field(default_factory=list)
    computed: Future[list[Completion]] | None = None


class Twins:
    """Stands before an engine's `submit`; safe to use from several threads."""

    def __init__(
        self, submit: Callable[[Prompt], Future[list[Completion]]], *, remembered_tokens: int = REMEMBERED_TOKENS
    ) -> None:
        self._submit = submit
        self._lock = Lock()
        self._shared: dict[bytes, Shared] = {}
        self._answers: OrderedDict[bytes, list[Completion]] = OrderedDict()
        self._room = remembered_tokens

    def submit(self, prompt: Prompt, likeness: bytes | None) -> Future[list[Completion]]:
        """As `Engine.submit`, with a future of the line's own: to cancel it costs the others nothing.

        An answer that was computed for another counts its whole prompt as cached. A line never waits for one
        that the engine lets in later than itself.
        """
        if likeness is None:
            return self._submit(prompt)
        mine: Future[list[Completion]] = Future()
        with self._lock:
            if (answer := self._answers.get(likeness)) is not None:
                self._answers.move_to_end(likeness)
                mine.set_result(answer)
                return mine
            shared = self._shared.get(likeness)
            is_first = shared is None or shared.priority > prompt.priority
            if shared is None or is_first:
                shared = self._shared[likeness] = Shared(prompt.priority)
            shared.waiting.append(mine)
        if is_first:
            self._compute(likeness, shared, prompt)
        mine.add_done_callback(partial(self._leave, likeness, shared))
        return mine

    def _compute(self, likeness: bytes, shared: Shared, prompt: Prompt) -> None:
        """Outside of the lock: an engine may answer at once, in this thread."""
        try:
            shared.computed = self._submit(prompt)
        except BaseException as error:
            _answer(self._close(likeness, shared)[1:], error)
            raise
        shared.computed.add_done_callback(partial(self._settle, likeness, shared))

    def _settle(self, likeness: bytes, shared: Shared, computed: Future[list[Completion]]) -> None:
        error = CancelledError() if computed.cancelled() else computed.exception()
        if error is not None:
            _answer(self._close(likeness, shared), error)
            return
        known = [replace(one, cached_tokens=one.prompt_tokens) for one in computed.result()]
        with self._lock:
            self._remember(likeness, known)
        _answer(self._close(likeness, shared), computed.result(), known)

    def _leave(self, likeness: bytes, shared: Shared, mine: Future[list[Completion]]) -> None:
        """Forget a line that was cancelled; with the last of them the computation is."""
        if not mine.cancelled():
            return
        with self._lock:
            if mine in shared.waiting:
                shared.waiting.remove(mine)
            is_deserted = not shared.waiting
            if is_deserted and self._shared.get(likeness) is shared:
                del self._shared[likeness]
        if is_deserted and shared.computed is not None:
            shared.computed.cancel()

    def _close(self, likeness: bytes, shared: Shared) -> list[Future[list[Completion]]]:
        """Let nobody join any more; who has."""
        with self._lock:
            if self._shared.get(likeness) is shared:
                del self._shared[likeness]
            waiting, shared.waiting = shared.waiting, []
        return waiting

    def _remember(self, likeness: bytes, answer: list[Completion]) -> None:
        """Those used least of late make room."""
        if likeness in self._answers:
            return
        self._answers[likeness] = answer
        self._room -= _size(answer)
        while self._room < 0:
            _, oldest = self._answers.popitem(last=False)
            self._room += _size(oldest)


def _answer(
    waiting: Sequence[Future[list[Completion]]],
    first: list[Completion] | BaseException,
    rest: list[Completion] | None = None,
) -> None:
    """Give `first` to the first line that still waits, `rest` to the others; an error goes to all."""
    answer = first
    for future in waiting:
        if not future.set_running_or_notify_cancel():
            continue  # cancelled in this moment
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
            answer = rest if rest is not None else answer


def _size(answer: list[Completion]) -> int:
    """In tokens; a log-probability, its own or of a likely one, takes about as much as three."""
    return sum(max(ANSWER_TOKENS_LEAST, len(one.token_ids) + _logprobs_size(one)) for one in answer)


def _logprobs_size(completion: Completion) -> int:
    return sum(3 * (1 + len(token.top)) for token in completion.logprobs or ())
