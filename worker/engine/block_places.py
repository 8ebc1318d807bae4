"""Where one run of the 8-bit graph has its tokens, and who attends where. Pure: it knows no cache.

What it makes even or fills up is for the bits: `worker.model.block_graph` says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from worker.engine.runner import Span
from worker.model.block_ports import STAGES

Inputs = dict[str, npt.NDArray[Any]]
"""Of the graph, by name."""

_ROWS_MIN: Final = 2
"""The rows of a run, real or not: the reductions add the parts of a single row in another order."""


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where a run has its tokens: first `rows`, `empty` of which are nobody's, then each span's."""

    rows: int
    empty: int
    spans: tuple[tuple[Span, int, int], ...]
    """Each with its start and its end."""

    @property
    def tokens(self) -> int:
        return self.spans[-1][2] if self.spans else self.rows

    def last(self, stage: int) -> int:
        """Where the last token of a stage's span is."""
        return next(end - 1 for span, _, end in self.spans if span.stage == stage)

    def inputs(self) -> Inputs:
        """Who attends where: rows first, then each stage's span, which is made even by its last token once more:
        what follows a token has no say in it, and the next piece overwrites it. A stage without a span gets the
        first row, twice.
        """
        of_stage = {span.stage: (span.start, range(start, end)) for span, start, end in self.spans}
        tokens, sizes, attended = [*range(self.rows)], [self.rows], [*range(self.tokens)]
        lengths = []
        for stage in range(STAGES):
            before, own = of_stage.get(stage, (0, range(0)))
            attended[own.start : own.stop] = range(len(tokens), len(tokens) + len(own))
            given = [*own, *own[len(own) - len(own) % 2 :]] if own else [0, 0]
            tokens += given
            sizes.append(len(given))
            lengths.append(before + len(given))
        return {
            "attention_tokens": np.array(tokens, np.int64),
            "attention_sizes": np.array(sizes, np.int64),
            "attended": np.array(attended, np.int64),
            "stage_lengths": np.array(lengths, np.int32),
        }


def places_of(spans: Sequence[Span], rows: int) -> Places:
    """Of so many rows and these spans, in their order."""
    padded = max(rows, _ROWS_MIN)
    ends = np.cumsum([padded, *(len(span.token_ids) for span in spans)]).tolist()
    return Places(padded, padded - rows, tuple(zip(spans, ends, ends[1:], strict=False)))
