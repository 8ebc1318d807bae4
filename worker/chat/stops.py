"""Stop strings: texts that end an answer and are not part of it. Works on bytes, whatever the tokens.

Where several are found, the one that ends first counts, and of those that end together the longest: so the
answer does not depend on how its text is cut into tokens.
"""

from collections.abc import Iterable, Sequence


class StopWatcher:
    """Ends a choice with the token that completes a stop string."""

    def __init__(self, stops: Sequence[bytes], token_bytes: Sequence[bytes]) -> None:
        self._stops = stops
        self._token_bytes = token_bytes
        self._overlap = max(map(len, stops)) - 1
        self._tail = b""

    def mask(self) -> None:
        """All tokens are allowed."""

    def accept(self, token_id: int) -> bool:
        """Search the new bytes and those before them in which a stop may have begun."""
        window = self._tail + self._token_bytes[token_id]
        self._tail = window[max(0, len(window) - self._overlap) :]
        return not any(stop in window for stop in self._stops)

    def forced(self) -> Sequence[int]:
        """Nothing is."""
        return ()

    def finish(self) -> None:
        """Nothing is held."""


def cut(text: bytes, stops: Iterable[bytes]) -> bytes:
    """The text before the stop string that ends first; all of it if there is none."""
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    return text[: min(found)[1]] if found else text
