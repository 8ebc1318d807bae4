"""Text published while it is written: only what the finished answer is sure to begin with.

A sign whose bytes are not all there, bytes that may be the beginning of a stop string, and all from where a call may
begin, are held back. What is still held at the end is not published: a choice may also have ended because its line
failed, and is then written anew. The stored answer has it in any case.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from worker.chat.tools.beginning import Beginning


class Publish(Protocol):
    """Takes text of a choice, before which there are `start` characters. Returns at once and does not raise."""

    def __call__(self, choice: int, text: str, *, start: int, is_thinking: bool = False) -> None: ...


class Pieces:
    """Publishes one choice. Stands behind the watchers that end it, and so never sees a whole stop string."""

    def __init__(
        self,
        publish: Publish,
        choice: int,
        stops: Sequence[bytes],
        token_bytes: Sequence[bytes],
        calls: Beginning | None = None,
        *,
        drops_first_space: bool = False,
    ) -> None:
        self._publish = publish
        self._choice = choice
        self._unsure: list[Begun | Beginning] = [*map(Begun, stops), *([calls] if calls else [])]
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # as the answer is decoded
        self._held = b""
        self._start = 0
        self._drops_space = drops_first_space

    def mask(self) -> None:
        """All tokens are allowed."""

    def accept(self, token_id: int) -> bool:
        """Publish what this token makes sure; always True."""
        added = self._token_bytes[token_id]
        unsure = max((unsure.take(added) for unsure in self._unsure), default=0)
        known = self._held + added
        sure = len(known) - unsure
        self._held = known[sure:]
        if text := self._told(self._decoder.decode(known[:sure])):
            self._publish(self._choice, text, start=self._start)
            self._start += len(text)
        return True

    def forced(self) -> Sequence[int]:
        """Nothing is."""
        return ()

    def finish(self) -> None:
        """What is held stays unpublished."""

    def _told(self, text: str) -> str:
        if not (text and self._drops_space):
            return text
        self._drops_space = False
        return text.removeprefix(" ")


class Begun:
    """How much of one stop string a text ends with, by the algorithm of Knuth, Morris and Pratt."""

    def __init__(self, stop: bytes) -> None:
        self._stop = stop
        self._shorter = _borders(stop)
        self._length = 0

    def take(self, added: bytes) -> int:
        """The length of the longest beginning of the stop string that the text, with `added`, ends with.

        The work is in proportion to `added`, however long the stop string.
        """
        stop, shorter, length = self._stop, self._shorter, self._length
        for byte in added:
            assert length < len(stop), "a watcher before this one ends the choice with its stop string"
            while length and stop[length] != byte:
                length = shorter[length - 1]
            length += stop[length] == byte
        self._length = length
        return length


def _borders(stop: bytes) -> list[int]:
    """For each beginning of `stop`: the longest of its own shorter beginnings that it ends with."""
    borders, length = [0], 0
    for byte in stop[1:]:
        while length and stop[length] != byte:
            length = borders[length - 1]
        length += stop[length] == byte
        borders.append(length)
    return borders
