"""Answers that can be nothing but what a grammar allows: which tokens may come next."""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock, Thread, get_ident
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from jobs.contract.limits import GRAMMAR_CHARACTERS_MAX
from jobs.errors import Unavailable
from worker.chat.grammar_faults import fault_of, refuse_if_lost
from worker.chat.grammar_text import Place
from worker.chat.masks import Lookahead, NextMask
from worker.engine import NothingToSample
from worker.engine.sampling import Mask
from worker.model import Tokenizer

logger = logging.getLogger(__name__)

KEPT: Final = 64
COMPILE_SECONDS_MAX: Final = 5.0
"""Of computing: five times what the largest grammars take within `_limits`, and more."""
GLANCE_SECONDS: Final = 0.2
GIVEN_UP_MAX: Final = 2
"""Grammars that took too long and are still worked on, before no other is begun."""

_LEAST_PRIORITY: Final = 19


class Grammars:
    """The grammars of one model, each compiled once and kept while it is used; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = LLTokenizer(
            tokenizer.as_json(), n_vocab=tokenizer.vocabulary, eos_token=list(tokenizer.eos_token_ids)
        )
        self._limits = _limits()
        self._writable = {token[0] for token in tokenizer.token_bytes if len(token) == 1}
        """The bytes that the vocabulary has; to some, those are missing that only begin signs nobody uses."""
        self._lookahead = Lookahead()
        self._compiling = Lock()
        self._keeping = Lock()
        self._kept: OrderedDict[str, Grammar | str] = OrderedDict()
        self._given_up: list[Thread] = []

    def compile(self, text: str, place: Place) -> "Grammar":
        """Of a text of `grammar_text`, or Lark. BadRequest, in the words of `place`, for one that cannot be served;
        Unavailable where too many others keep the compiler busy.

        One at a time, so that many big ones leave the engine its processors; what was refused is remembered too. Who
        asks for one that is there waits for nobody.
        """
        if len(text) > GRAMMAR_CHARACTERS_MAX:
            raise place.refusal(
                f"too large. Expected at most {GRAMMAR_CHARACTERS_MAX} characters, but got {len(text)}."
            )
        if (found := self._known(text)) is None:
            with self._compiling:
                found = self._known(text) or self._compiled_in_time(text)
                self._keep(text, found)
        if isinstance(found, str):
            raise place.refusal(found)
        return found

    def is_whole(self, token_id: int) -> bool:
        """Whether a grammar can only name a token by its id: its text stands for other tokens."""
        return self._tokenizer.is_special_token(token_id)

    def _known(self, text: str) -> "Grammar | str | None":
        with self._keeping:
            if (found := self._kept.get(text)) is not None:
                self._kept.move_to_end(text)
            return found

    def _keep(self, text: str, found: "Grammar | str") -> None:
        with self._keeping:
            self._kept[text] = found
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    def _compiled_in_time(self, text: str) -> "Grammar | str":
        """In a thread of its own, which cannot be ended: one that takes too long is left to come to its end, with what
        processors nobody else wants.
        """
        self._given_up = [thread for thread in self._given_up if thread.is_alive()]
        if len(self._given_up) >= GIVEN_UP_MAX:
            raise Unavailable(
                f"No new grammar can be compiled now: {GIVEN_UP_MAX} others took too long and have not ended yet.",
                code="server_error",
            )
        clock: Future[int] = Future()
        made: Future[Grammar | str] = Future()
        thread = Thread(target=self._settle, args=(text, clock, made), name="grammar", daemon=True)
        thread.start()
        while _seconds_on(clock.result()) < COMPILE_SECONDS_MAX:
            with suppress(TimeoutError):
                return made.result(GLANCE_SECONDS)
        logger.warning("grammar given up", extra={"characters": len(text), "seconds": COMPILE_SECONDS_MAX})
        self._give_up(thread)
        return f"it takes more than {COMPILE_SECONDS_MAX:.0f} seconds to compile."

    def _give_up(self, thread: Thread) -> None:
        """On Linux, a priority is a thread's own."""
        assert thread.native_id is not None, "it has begun"
        with suppress(ProcessLookupError):  # it ended just now
            os.setpriority(os.PRIO_PROCESS, thread.native_id, _LEAST_PRIORITY)
        self._given_up.append(thread)

    def _settle(self, text: str, clock: "Future[int]", made: "Future[Grammar | str]") -> None:
        clock.set_result(time.pthread_getcpuclockid(get_ident()))
        try:
            made.set_result(self._compile(text))
        except BaseException as error:  # noqa: BLE001  the edge of a thread: the error goes to who waits
            made.set_exception(error)

    def _compile(self, text: str) -> "Grammar | str":
        """Why not, if it is text."""
        if not self._writable.issuperset(text.encode()):
            return "it has characters that this model has no tokens for."
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        if (fault := fault_of(matcher)) is not None:
            return fault
        try:
            return Grammar(matcher, self._lookahead)
        except NothingToSample:
            return "no text satisfies it."


class Grammar:
    """One grammar over one model's tokens, with what may and what must come first."""

    def __init__(self, matcher: LLMatcher, lookahead: Lookahead) -> None:
        self._matcher = matcher
        self._lookahead = lookahead
        self._first = NextMask(matcher)
        self._first.find()
        self._forced = matcher.compute_ff_tokens()

    def watcher(self) -> "GrammarWatcher":
        """The watcher of one choice."""
        return GrammarWatcher(self._matcher.deep_copy(), self._first, self._forced, self._lookahead)


class GrammarWatcher:
    """Keeps one choice within a grammar and ends it when the grammar is complete.

    Where only one text can follow, its tokens are those of the model's own tokenizer; they are known at once, and each
    is the only one allowed.
    """

    def __init__(self, matcher: LLMatcher, first: NextMask, forced: Sequence[int], lookahead: Lookahead) -> None:
        self._matcher = matcher
        self._next = first
        self._lookahead = lookahead
        self._forced = list(forced[::-1])
        """The next is the last."""

    def mask(self) -> Mask:
        """NothingToSample if the grammar is too deep to go on."""
        return self._next.find()

    def accept(self, token_id: int) -> bool:
        """False when nothing can follow."""
        if not self._forced:
            self._next.find()  # until it is there, the matcher is not ours
        self._matcher.consume_token(token_id)
        refuse_if_lost(self._matcher)
        if self._matcher.is_stopped():
            return False
        self._look_ahead(token_id)
        return True

    def forced(self) -> Sequence[int]:
        """All that the grammar leaves no choice of."""
        return self._forced[::-1]

    def finish(self) -> None:
        """The matcher goes with its watcher."""

    def _look_ahead(self, token_id: int) -> None:
        """A token that was not drawn may spell what is forced in another way than the model's own tokenizer."""
        if not self._forced or self._forced.pop() != token_id:
            self._forced = []
        if not self._forced:
            self._forced = self._matcher.compute_ff_tokens()[::-1]
        self._next = NextMask(self._matcher)
        if not self._forced:
            self._lookahead.hurry(self._next)


def _seconds_on(clock: int) -> float:
    """What the thread of a clock has computed: a busy machine refuses nothing that an idle one serves."""
    try:
        return time.clock_gettime(clock)
    except OSError:  # the thread has ended
        return 0.0


def _limits() -> LLParserLimits:
    """With `schema_bounds`, the largest grammars take about half a second; a state of the lexer takes 1 to 2 kB."""
    return LLParserLimits(
        max_grammar_size=50_000,
        max_items_in_row=10_000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        verbose_errors=False,
    )
