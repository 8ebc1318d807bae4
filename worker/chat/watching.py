"""All that watches the choices of one body while they are written: what holds them, what ends them, what publishes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from worker.chat.grammar import Grammar, Grammars
from worker.chat.pieces import Pieces, Publish
from worker.chat.reasoning import Thinking, Thoughts
from worker.chat.speech import Speech
from worker.chat.stops import StopWatcher
from worker.chat.tools.beginning import Beginning
from worker.chat.tools.held import EitherGrammar, FromBeginning
from worker.chat.tools.offer import Offer
from worker.chat.watchers import Together
from worker.engine import Watcher
from worker.model import Tokenizer


@dataclass(frozen=True, slots=True)
class Hold:
    """What an answer is held to: nothing if there is no `watcher`."""

    watcher: Callable[[], Watcher] | None = None
    is_from_start: bool = False
    """Whether all of the answer is held, and not only what follows the beginning of a call."""


@dataclass(frozen=True, slots=True)
class Watching:
    """Makes the watcher of each choice."""

    tokenizer: Tokenizer
    speech: Speech
    offer: Offer | None
    hold: Hold
    stops: tuple[bytes, ...]
    publish: Publish | None

    def maker(self, thoughts: Thoughts | None) -> Callable[[int], Watcher] | None:
        """None where there is nothing to watch."""
        limits_thinking = thoughts is not None and thoughts.tokens_max is not None
        if not (self.hold.watcher or self.stops or self.publish or limits_thinking):
            return None
        return partial(self._watcher, thoughts)

    def _watcher(self, thoughts: Thoughts | None, choice: int) -> Watcher:
        """What ends a choice comes before what publishes it; and all of it is of the answer, not of the thinking."""
        parts: list[Watcher] = [self.hold.watcher()] if self.hold.watcher else []
        token_bytes = self.speech.call_bytes if self.offer else self.tokenizer.token_bytes
        if self.stops:
            parts.append(StopWatcher(self.stops, token_bytes))
        if self.publish is not None:
            calls = self.speech.beginning() if self.offer else None
            drops = thoughts is None and self.tokenizer.drops_first_space
            parts.append(Pieces(self.publish, choice, self.stops, token_bytes, calls, drops_first_space=drops))
        answer = Together(parts)
        if thoughts is None:
            return answer
        aloud = self._thinking_aloud(choice)
        return Thinking(thoughts, answer, self.tokenizer, holds=self.hold.is_from_start, thinking=aloud)

    def _thinking_aloud(self, choice: int) -> Watcher | None:
        """Blanks at the end of the thinking are not published: they are not told."""
        if self.publish is None:
            return None
        publish = partial(self.publish, is_thinking=True)
        return Pieces(publish, choice, (), self.tokenizer.token_bytes, Beginning((), only_first=False))


def hold_of(offer: Offer | None, form: Grammar | None, speech: Speech, grammars: Grammars) -> Hold:
    """`form` is the grammar of an answer that does not call. BadRequest for functions that cannot be held."""
    if offer is None or not (offer.is_held or form):
        return Hold(form.watcher, is_from_start=True) if form else Hold()
    call = speech.call_grammar(offer, grammars)
    if offer.is_forced:
        return Hold(call.watcher, is_from_start=True)
    if form is not None:
        return Hold(lambda: EitherGrammar(form.watcher(), call.watcher()), is_from_start=True)
    return Hold(lambda: FromBeginning(speech.beginning(), call.watcher, speech.call_bytes, speech.encode))
