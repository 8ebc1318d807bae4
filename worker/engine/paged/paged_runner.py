"""Runs a graph of PagedAttention: prompts in packed pieces without padding, rows in buckets, beginnings shared."""

from collections.abc import Sequence
from itertools import compress

import numpy as np

from worker.engine.paged import packing
from worker.engine.paged.occupancy import Copies, Occupancy, Room
from worker.engine.paged.session import PagedSession
from worker.engine.runner import Span
from worker.engine.softmax import Logits


class PagedRunner:
    """A session and who has its pages. The methods are those of `Runner`."""

    mixes = False

    def __init__(self, session: PagedSession, room: Room) -> None:
        self.vocabulary = session.vocabulary
        self.slots = room.slots
        self.stages = self.spans_max = room.stages
        self.context_tokens = room.context_tokens
        self.page_tokens = room.page_tokens
        self._session = session
        self._occupancy = Occupancy(room)
        self._copies: Copies = []
        """Of pages, to be made before the next run."""

    @property
    def free_tokens(self) -> int:
        return self._occupancy.free_pages * self.page_tokens

    def step(self, spans: Sequence[Span], token_ids: Sequence[int]) -> Logits:
        computed = [self._pieces(spans)] if spans else []
        if token_ids:
            # A step that has both is rare, and what the first run gave is lost in the second.
            computed = [logits.copy() for logits in computed]
            computed.append(self._rows(token_ids))
        return computed[0] if len(computed) == 1 else np.concatenate(computed)

    def copy(self, source: int, target: int, length: int) -> None:
        self._occupancy.copy_stage(source, target, length)

    def place(self, stage: int, length: int) -> int:
        self._copies += self._occupancy.place(stage, length)
        return self._occupancy.rows - 1

    def remove(self, row: int) -> None:
        self._occupancy.remove(row)

    def close(self) -> None:
        self._session.close()

    def _pieces(self, spans: Sequence[Span]) -> Logits:
        for span in spans:
            self._copies += self._occupancy.write_stage(span.stage, span.start, span.start + len(span.token_ids))
        table = self._occupancy.stage_table([span.stage for span in spans])
        wants = [span.ends_prompt for span in spans]
        pieces, starts = [span.token_ids for span in spans], [span.start for span in spans]
        return self._run(packing.of_pieces(pieces, starts, wants, table), len([*compress(spans, wants)]))

    def _rows(self, token_ids: Sequence[int]) -> Logits:
        occupancy = self._occupancy
        occupancy.make_room_for_a_token()
        pages = packing.width(int(occupancy.lengths.max()) // self.page_tokens + 1)
        table = occupancy.row_table(pages)
        logits = self._run(packing.of_rows(token_ids, occupancy.lengths, table, self.page_tokens), len(token_ids))
        occupancy.grow()
        return logits

    def _run(self, run: packing.PackedRun, rows: int) -> Logits:
        self._session.copy_pages(self._copies)
        self._copies.clear()
        self._session.run(run)
        return self._session.logits(rows)
