"""What one run of a paged graph is given. Pure: it knows nothing of devices or of who owns a page.

A run has pieces of prompts, or one token for each of the rows, never both: attention over rows alone is faster, and
can be captured. What is captured has a fixed shape, so rows come in buckets, filled up with rows of nobody's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from worker.engine.paged.pages import NOBODYS

Ids = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int32]

_BUCKETS: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256)
_BUCKET_STEP: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class PackedRun:
    """The inputs of one run; `worker.model.paged_graph` says what they mean."""

    input_ids: Ids
    """Below 0 for a token that is still being drawn: `session.Fill` puts it there."""
    cumulative_sequence_lengths: Lengths
    past_sequence_lengths: Lengths
    block_table: Lengths
    attention_metadata: Lengths
    logits_indices: Lengths
    is_captured: bool
    """Nothing but the numbers differs from another such run of as many tokens and as wide a table."""

    @property
    def rows(self) -> int:
        """Of logits."""
        return len(self.logits_indices)

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences, and pages of each."""
        sequences, pages = self.block_table.shape
        return sequences, pages

    def inputs(self) -> dict[str, npt.NDArray[np.int64] | Lengths]:
        """By the names of the graph."""
        return {
            "input_ids": self.input_ids,
            "cumulative_sequence_lengths": self.cumulative_sequence_lengths,
            "past_sequence_lengths": self.past_sequence_lengths,
            "block_table": self.block_table,
            "attention_metadata": self.attention_metadata,
            "logits_indices": self.logits_indices,
        }


def of_pieces(pieces: Sequence[Ids], starts: Sequence[int], wants: Sequence[bool], table: Lengths) -> PackedRun:
    """Pieces of prompts, each from its start on; the logits after the last token of those that want it. Where none
    does, those after the last token of all: CUDA starts no kernel over nothing.
    """
    lengths = np.array([len(piece) for piece in pieces], np.int32)
    past = np.array(starts, np.int32)
    ends = np.cumsum(lengths, dtype=np.int32)
    wanted = ends[np.array(wants, bool)] if any(wants) else ends[-1:]
    # Told that no piece has more than one token, attention would go the way of rows, and cuDNN make a plan for each
    # number of pieces. That there may be two tokens is no lie.
    longest = max(2, int(lengths.max()))
    return PackedRun(
        input_ids=np.concatenate(pieces),
        cumulative_sequence_lengths=np.concatenate([np.zeros(1, np.int32), ends]),
        past_sequence_lengths=past,
        block_table=_widened(table),
        attention_metadata=np.array([longest, (past + lengths).max(), 0], np.int32),
        logits_indices=wanted - np.int32(1),
        is_captured=False,
    )


def of_rows(token_ids: Sequence[int], past: Lengths, table: Lengths, page_tokens: int) -> PackedRun:
    """One token for each row, with rows of nobody's behind them that make a bucket full; as many rows of logits."""
    rows, pages = table.shape
    sequences = bucket(rows)
    ids, lengths = np.zeros(sequences, np.int64), np.zeros(sequences, np.int32)
    filled = np.full((sequences, pages), NOBODYS, np.int32)
    ids[:rows], lengths[:rows], filled[:rows] = token_ids, past, table
    # The longest row needs more than half of the pages, or the table were half as wide.
    longest_min = pages // 2 * page_tokens + 1 if pages > 1 else 1
    return PackedRun(
        input_ids=ids,
        cumulative_sequence_lengths=np.arange(sequences + 1, dtype=np.int32),
        past_sequence_lengths=lengths,
        block_table=filled,
        attention_metadata=np.array([1, pages * page_tokens, longest_min], np.int32),
        logits_indices=np.arange(sequences, dtype=np.int32),
        is_captured=True,
    )


def _widened(table: Lengths) -> Lengths:
    """With columns of nobody's behind it, to a width of which there are few."""
    rows, pages = table.shape
    wide = np.full((rows, width(pages)), NOBODYS, np.int32)
    wide[:, :pages] = table
    return wide


def bucket(rows: int) -> int:
    """The number of rows that a run has for so many that are wanted."""
    for size in _BUCKETS:
        if rows <= size:
            return size
    return -(-rows // _BUCKET_STEP) * _BUCKET_STEP


def width(pages: int) -> int:
    """The columns of a block table for so many pages: a power of two."""
    return 1 << (pages - 1).bit_length()
