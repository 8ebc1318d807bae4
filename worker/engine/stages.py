"""What the stages hold: token ids, so that a prompt which begins alike need not be computed from its start."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int64]

AHEAD = 32
"""How many prompts of the line are asked what they will need."""


class Stages:
    """The tokens whose keys and values each stage has, from the first position on."""

    def __init__(self, count: int) -> None:
        self._held: list[TokenIds] = [np.zeros(0, np.int64)] * count

    def hits(self, token_ids: TokenIds) -> tuple[int, ...]:
        """For each stage, how many of the first tokens are there."""
        return tuple(shared(held, token_ids) for held in self._held)

    def hits_ahead(self, line: Iterable[TokenIds]) -> list[tuple[int, ...]]:
        """The hits of the next prompts of the line."""
        return [self.hits(token_ids) for token_ids in _first(line, AHEAD)]

    def hold(self, stage: int, token_ids: TokenIds) -> None:
        """Note that a stage now has these and no others."""
        self._held[stage] = token_ids


def shared(one: TokenIds, other: TokenIds) -> int:
    """How many tokens two sequences have in common from their start."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def _first(line: Iterable[TokenIds], count: int) -> Iterator[TokenIds]:
    return (token_ids for token_ids, _ in zip(line, range(count), strict=False))
