"""Several features of the text over one choice, as one."""

from collections.abc import Sequence
from functools import reduce

import numpy as np

from worker.engine import Watcher
from worker.engine.sampling import Mask


class Together:
    """A token must be allowed by all of the watchers, and the first that wants no more ends the choice."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def mask(self) -> Mask | None:
        """What all of them allow."""
        masks = [mask for watcher in self._watchers if (mask := watcher.mask()) is not None]
        return reduce(np.bitwise_and, masks) if masks else None

    def accept(self, token_id: int) -> bool:
        """False as soon as one has had enough; the others are not shown a last token."""
        return all(watcher.accept(token_id) for watcher in self._watchers)

    def forced(self) -> Sequence[int]:
        """What one of them leaves no choice of; a token that another does not allow has no choice but to fail."""
        return next((forced for watcher in self._watchers if (forced := watcher.forced())), ())

    def finish(self) -> None:
        """Tell all of them."""
        for watcher in self._watchers:
            watcher.finish()
