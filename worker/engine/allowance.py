"""How much of its budget an engine uses: all, and less for a while where memory was short."""

import logging
from dataclasses import replace
from typing import Final

from worker.engine.errors import OutOfMemory
from worker.engine.scheduler import Budget

logger = logging.getLogger(__name__)

STEPS_BEFORE_MORE: Final = 500
"""With enough memory. Trying costs a step, and the prompts of the rows that leave if it fails: so, next to nothing."""


class Allowance:
    """`budget` is what may be used now, up to what was granted."""

    def __init__(self, granted: Budget) -> None:
        self.budget = granted
        self._granted = granted
        self._steps = 0

    def halve(self, running: int, error: OutOfMemory) -> None:
        """Go on with half of the `running` sequences and of a step's prompt tokens; the error if that is nothing."""
        now = self.budget
        if running == now.chunk_tokens == 1:
            raise error
        slots, chunk_tokens = max(1, running // 2), max(1, now.chunk_tokens // 2)
        logger.warning("out of memory", extra={"slots": slots, "chunk_tokens": chunk_tokens, "reason": str(error)})
        self.budget = replace(now, slots=slots, chunk_tokens=chunk_tokens)
        self._steps = 0

    def count_step(self) -> None:
        """A step had enough memory; after many, twice as much is tried."""
        if self.budget == self._granted:
            return
        self._steps += 1
        if self._steps == STEPS_BEFORE_MORE:
            most, now = self._granted, self.budget
            slots, chunk_tokens = min(most.slots, 2 * now.slots), min(most.chunk_tokens, 2 * now.chunk_tokens)
            self.budget = replace(now, slots=slots, chunk_tokens=chunk_tokens)
            self._steps = 0

    def restore(self) -> None:
        """All of it again."""
        self.budget = self._granted
