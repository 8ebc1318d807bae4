"""Where calls may begin in a text that is being written. Works on bytes, whatever the tokens."""

from collections.abc import Sequence

from worker.chat.tools import calls

_BLANKS = calls.BLANKS.encode()


class Beginning:
    """Follows one choice's text up to its first call."""

    def __init__(self, openings: Sequence[str], *, only_first: bool) -> None:
        self._openings = [opening.encode() for opening in openings]
        self._only_first = only_first
        self._may_come = True
        self._held = b""
        self.has_come = False

    @property
    def written(self) -> bytes:
        """What stands there from the first call on."""
        return self._held.lstrip(_BLANKS) if self.has_come else b""

    def take(self, added: bytes) -> int:
        """How many bytes at the end, with `added`, may not be said by the answer: blanks before a call, and all
        from where it begins.
        """
        if not self._may_come:
            return 0
        self._held += added
        if not self.has_come:
            self._held = self._at_start() if self._only_first else self._anywhere()
        return len(self._held)

    def _at_start(self) -> bytes:
        said = self._held.lstrip(_BLANKS)
        self.has_come = any(said.startswith(opening) for opening in self._openings)
        self._may_come = self.has_come or any(opening.startswith(said) for opening in self._openings)
        return self._held if self._may_come else b""

    def _anywhere(self) -> bytes:
        held = self._held
        places = [place for opening in self._openings if (place := held.find(opening)) >= 0]
        self.has_come = bool(places)
        place = min(places) if places else len(held) - max((_begun(held, one) for one in self._openings), default=0)
        return held[len(held[:place].rstrip(_BLANKS)) :]


def _begun(text: bytes, opening: bytes) -> int:
    """The length of the longest beginning of `opening`, short of all of it, that the text ends with."""
    lengths = range(min(len(text), len(opening) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(opening[:length])), 0)
