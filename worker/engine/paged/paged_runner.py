"""Runs a graph of PagedAttention: prompts in packed pieces without padding, rows in buckets, beginnings shared."""

from collections.abc import Collection, Sequence

import numpy as np

from worker.engine.device.rows import SourceRows
from worker.engine.device.sampler import DeviceSampler
from worker.engine.paged import packing
from worker.engine.paged.occupancy import Copies, Occupancy, Room
from worker.engine.paged.packing import PackedRun
from worker.engine.paged.session import PagedSession
from worker.engine.runner import Span
from worker.engine.softmax import Ids, Logits


class PagedRunner:
    """A session and who has its pages. The methods are those of `Runner`. With a sampler, logits stay on the device."""

    mixes = False
    is_exact = False

    def __init__(self, session: PagedSession, room: Room, sampler: DeviceSampler | None = None) -> None:
        self.vocabulary = session.vocabulary
        self.slots = room.slots
        self.stages = self.spans_max = room.stages
        self.context_tokens = room.context_tokens
        self.page_tokens = room.page_tokens
        self._session = session
        self._sampler = sampler
        self._occupancy = Occupancy(room)
        self._copies: Copies = []
        """Of pages, to be made before the next run."""

    @property
    def free_tokens(self) -> int:
        return self._occupancy.free_pages * self.page_tokens

    def step(
        self, spans: Sequence[Span], token_ids: Sequence[int], unread: Collection[int] = ()
    ) -> Logits | SourceRows:
        if not token_ids:
            return self._rows_at(self._compute(spans))
        if not spans:
            return self._rows_at(self._write(token_ids, unread))
        # The second run overwrites what the first one gave.
        ends = self._session.logits_at(self._compute(spans)).copy()
        return np.concatenate([ends, self._session.logits_at(self._write(token_ids, unread))])

    def feeds(self, tokens: int, length: int) -> bool:  # noqa: ARG002  nothing that the row holds is moved
        """They take a run of their own, which costs about what a step of all rows costs."""
        return tokens >= self._occupancy.rows

    def feed(self, row: int, token_ids: Sequence[int]) -> None:
        occupancy = self._occupancy
        start = int(occupancy.lengths[row])
        occupancy.write_row(row, len(token_ids))
        pages = -(-(start + len(token_ids)) // self.page_tokens)
        table = occupancy.row_table(pages)[row : row + 1]
        self._run(packing.of_pieces([np.array(token_ids, np.int64)], [start], [False], table))
        occupancy.grow_row(row, len(token_ids))

    def copy(self, source: int, target: int, length: int) -> None:
        self._occupancy.copy_stage(source, target, length)

    def place(self, stage: int, length: int) -> int:
        self._copies += self._occupancy.place(stage, length)
        return self._occupancy.rows - 1

    def remove(self, row: int) -> None:
        self._occupancy.remove(row)

    def rewind(self, row: int) -> None:
        self._occupancy.rewind_row(row)

    def close(self) -> None:
        self._session.close()
        if self._sampler is not None:
            self._sampler.close()

    def _compute(self, spans: Sequence[Span]) -> Ids:
        """Pieces of prompts; the rows of logits of those that end theirs."""
        for span in spans:
            self._copies += self._occupancy.write_stage(span.stage, span.start, span.start + len(span.token_ids))
        table = self._occupancy.stage_table([span.stage for span in spans])
        wants = [span.ends_prompt for span in spans]
        pieces, starts = [span.token_ids for span in spans], [span.start for span in spans]
        return self._run(packing.of_pieces(pieces, starts, wants, table))[: sum(wants)]

    def _write(self, token_ids: Sequence[int], unread: Collection[int]) -> Ids:
        """A token in every row; the rows of logits of those that are read."""
        occupancy = self._occupancy
        occupancy.make_room_for_a_token()
        pages = packing.width(int(occupancy.lengths.max()) // self.page_tokens + 1)
        table = occupancy.row_table(pages)
        rows = self._run(packing.of_rows(token_ids, occupancy.lengths, table, self.page_tokens))[: len(token_ids)]
        occupancy.grow()
        return np.delete(rows, list(unread))

    def _run(self, run: PackedRun) -> Ids:
        self._session.copy_pages(self._copies)
        self._copies.clear()
        return self._session.run(run, self._sampler.fill if self._sampler is not None else None)

    def _rows_at(self, rows: Ids) -> Logits | SourceRows:
        if self._sampler is None:
            return self._session.logits_at(rows)
        return SourceRows(self._session, self._sampler, rows)
