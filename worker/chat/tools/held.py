"""Watchers of answers that may call: held to a grammar from where a call begins, or to one of two grammars."""

from collections.abc import Callable, Sequence

from worker.chat.tools.beginning import Beginning
from worker.engine import NothingToSample, Watcher
from worker.engine.sampling import Mask


class FromBeginning:
    """Free text, until a call begins: from there on, what the call's watcher allows, and it ends the choice."""

    def __init__(
        self,
        beginning: Beginning,
        call: Callable[[], Watcher],
        token_bytes: Sequence[bytes],
        encode: Callable[[str], Sequence[int]],
    ) -> None:
        """`encode` gives tokens for the text of a call that has begun, its control tokens as such."""
        self._beginning = beginning
        self._make = call
        self._token_bytes = token_bytes
        self._encode = encode
        self._call: Watcher | None = None
        self._is_lost = False

    def mask(self) -> Mask | None:
        """All tokens are allowed before a call."""
        return self._call.mask() if self._call else None

    def accept(self, token_id: int) -> bool:
        """False when a call is complete and nothing may follow it."""
        if self._call is not None:
            return self._call.accept(token_id)
        if self._is_lost:
            return True
        self._beginning.take(self._token_bytes[token_id])
        return self._enter() if self._beginning.has_come else True

    def forced(self) -> Sequence[int]:
        """What is forced of a call."""
        return self._call.forced() if self._call else ()

    def finish(self) -> None:
        """It is over for the call too."""
        if self._call is not None:
            self._call.finish()

    def _enter(self) -> bool:
        """A token may have gone on from the beginning of a call as no call does: the text then stays free."""
        call = self._make()
        try:
            goes_on = all(call.accept(token_id) for token_id in self._encode(self._beginning.written.decode()))
        except (NothingToSample, UnicodeDecodeError):
            call.finish()
            self._is_lost = True
            return True
        self._call = call
        return goes_on


class EitherGrammar:
    """What one of two watchers allows, as long as it fits what was written."""

    def __init__(self, first: Watcher, second: Watcher) -> None:
        self._fitting = [first, second]

    def mask(self) -> Mask | None:
        """All that goes on in one of them."""
        masks = [watcher.mask() for watcher in self._fitting]
        joined = masks[0]
        for mask in masks[1:]:
            joined = None if joined is None or mask is None else joined | mask
        return joined

    def accept(self, token_id: int) -> bool:
        """False when no watcher that fits wants more."""
        going_on, fitting = False, []
        for watcher in self._fitting:
            try:
                going_on |= watcher.accept(token_id)
            except NothingToSample:
                watcher.finish()
            else:
                fitting.append(watcher)
        if not fitting:
            raise NothingToSample("neither grammar can go on")
        self._fitting = fitting
        return going_on

    def forced(self) -> Sequence[int]:
        """What is forced where only one still fits."""
        return self._fitting[0].forced() if len(self._fitting) == 1 else ()

    def finish(self) -> None:
        """It is over for those that still fit."""
        for watcher in self._fitting:
            watcher.finish()
