"""What every kind of filter is to the rest: something that names the categories of a text."""

from concurrent.futures import Future
from typing import Protocol

from worker.moderation.conversation import Conversation


class Judge(Protocol):
    """Safe to call from several threads."""

    def judge(self, said: Conversation) -> Future[frozenset[str]]:
        """The categories for which it must be filtered, none for what may pass.

        JudgeFailed, or any other error, from here or from the future: it is not known, so it must not pass.
        """
        ...


class JudgeFailed(Exception):
    """A judge gave no verdict that can be read."""
