"""Draws the next tokens of rows whose logits are on a device: the same tokens as `worker.engine.next_token` draws.

Rows of one kind are drawn in one run: greedy ones, those that leave few tokens, and those that leave many. Where
something is changed in a row's logits, a copy of it is changed and drawn from (`edits`). What a run was not sure
of is drawn on the host: some rows in ten thousand, and those of a top_p that so many tokens share that they are not
among the candidates.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from worker.engine import noise
from worker.engine.device import edit_graphs, sampler_graphs
from worker.engine.device.drawing import DeviceDrawing, Results
from worker.engine.device.edits import DeviceEdits
from worker.engine.device.graphs import DeviceGraphs, Graph, Open
from worker.engine.device.memory import DeviceMemory, Placed
from worker.engine.device.sampler_graph import INT64
from worker.engine.device.sampler_graphs import ATTEMPTS, CANDIDATES
from worker.engine.envelope import UNIT
from worker.engine.errors import OutOfMemory
from worker.engine.rows import Wish
from worker.engine.sampling import Draw, Sampling
from worker.engine.softmax import Ids, Logits

logger = logging.getLogger(__name__)

Values = dict[str, npt.NDArray[Any]]

ROWS_AT_ONCE: Final = 128
"""In one run: about as many as a card does side by side, and no more, for the memory that it takes."""

_CANDIDATE_LOGITS: Final = 2**23
"""In one run that finds candidates. Of more, ONNX Runtime's TopK goes a slower way on an H200, since its blocks would
not all run at once; and there, of equal logits the lower ids do not come first.
"""

_NO_TOP_P: Final = 2.0
"""More than all tokens have together."""


class DeviceSampler:
    """`open_session` opens a graph on the device of `memory`, where the `logits` are."""

    def __init__(self, memory: DeviceMemory, open_session: Open, logits: Placed) -> None:
        rows_max, vocabulary = logits.shape
        self._graphs = DeviceGraphs(memory, open_session, vocabulary)
        self._edits = DeviceEdits(self._graphs, min(rows_max, ROWS_AT_ONCE))
        self._logits = logits
        self._candidate_rows = max(1, min(ROWS_AT_ONCE, _CANDIDATE_LOGITS // vocabulary))
        # No run can do without it, so it is opened while there is memory; rows can be drawn on the host.
        self._graphs.opened(edit_graphs.filled, INT64)
        self._results = Results(memory, 2 * len(_KINDS), rows_max, min(edit_graphs.LIKELIEST, vocabulary))

    def draw(self, rows: Ids, wishes: Sequence[Wish], fetch: Callable[[Ids], Logits]) -> DeviceDrawing:
        """Begin to draw the next token of each of `rows` of the logits. `fetch` will give whole rows of them, also when
        others have taken their place, if the drawing `may_ask`.
        """
        self._graphs.begin()
        try:
            return self._draw(rows, wishes, fetch)
        except OutOfMemory as error:
            logger.warning("tokens are drawn on the host", extra={"rows": len(rows), "reason": str(error)})
            return DeviceDrawing(rows, np.zeros_like(rows), self._results, fetch, for_host=range(len(rows)))

    def fill(self, ids: Placed) -> None:
        """Put tokens that are being drawn where a run reads its ids: -1 - place stands for that place's."""
        place = {"given": ids, "drawn": self._results.drawn}
        self._graphs.run(edit_graphs.filled, ids.element, {}, place, {"ids": ids})

    def close(self) -> None:
        """Give the sessions back."""
        self._graphs.close()

    def _draw(self, rows: Ids, wishes: Sequence[Wish], fetch: Callable[[Ids], Logits]) -> DeviceDrawing:
        asking = {row: wish.top_logprobs for row, wish in enumerate(wishes) if wish.top_logprobs is not None}
        told = [row for row, top in asking.items() if top <= edit_graphs.LIKELIEST]
        places = np.zeros(len(rows), np.int64)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            places[some] = self._begin(rows[some], wishes[some], start)
        for start in range(0, len(told), ROWS_AT_ONCE):
            chosen = told[start : start + ROWS_AT_ONCE]
            self._tell(rows[chosen], places[chosen], self._results.told(len(told), start, len(chosen)))
        for_host = [row for row in asking if row not in told]
        may_ask = bool(for_host) or any(not wish.draw.sampling.is_greedy for wish in wishes)
        return DeviceDrawing(rows, places, self._results, fetch, told, for_host, may_ask=may_ask)

    def _begin(self, rows: Ids, wishes: Sequence[Wish], start: int) -> Ids:
        """Begin to draw some rows, the first of which is number `start` of the drawing; where their tokens will be."""
        are_changed = [wish.adjustment is not None or wish.mask is not None for wish in wishes]
        plain, changed = np.flatnonzero(np.logical_not(are_changed)), np.flatnonzero(are_changed)
        places = np.zeros(len(rows), np.int64)
        places[plain] = self._draw_from(self._logits, rows[plain], [wishes[row] for row in plain.tolist()], 0, start)
        if len(changed):
            theirs = [wishes[row] for row in changed.tolist()]
            logits, meant = self._edits.apply(self._logits, rows[changed], theirs)
            places[changed] = self._draw_from(logits, meant, theirs, len(_KINDS), start)
        return places

    def _draw_from(self, logits: Placed, rows: Ids, wishes: Sequence[Wish], first_region: int, start: int) -> Ids:
        """Kind by kind, each into a region of its own."""
        kinds = np.array([_kind(wish.draw.sampling) for wish in wishes])
        places = np.zeros(len(rows), np.int64)
        for number, (graph, values) in enumerate(_KINDS):
            meant = np.flatnonzero(kinds == number)
            step = self._candidate_rows if graph in _AMONG_CANDIDATES else ROWS_AT_ONCE
            for begin in range(0, len(meant), step):
                some = meant[begin : begin + step]
                given = values([wishes[row].draw for row in some.tolist()]) | {"rows": rows[some]}
                token, places[some] = self._results.region(first_region + number, start + begin, len(some))
                self._graphs.run(graph, logits.element, given, {"logits": logits}, {"token": token})
        return places

    def _tell(self, rows: Ids, places: Ids, outputs: Mapping[str, Placed]) -> None:
        """Have log-probabilities told of the tokens that are drawn for some rows."""
        given, placed = {"rows": rows, "places": places}, {"logits": self._logits, "drawn": self._results.drawn}
        self._graphs.run(edit_graphs.told, self._logits.element, given, placed, outputs)


def _kind(one: Sampling) -> int:
    """Of `_KINDS`."""
    if one.is_greedy:
        return 0
    if one.top_k or one.min_p:
        return 1
    return 2 if one.top_p == 1 else 3


def _of_greedy(draws: Sequence[Draw]) -> Values:  # noqa: ARG001
    return {}


def _of_few(draws: Sequence[Draw]) -> Values:
    return _inverse_temperature(draws) | {
        "temperature": _column(draws, lambda one: one.temperature),
        "top_k": _column(draws, lambda one: min(one.top_k or CANDIDATES, CANDIDATES)),
        "top_p": _column(draws, lambda one: one.top_p if one.top_p < 1 else _NO_TOP_P),
        "min_p": _column(draws, lambda one: one.min_p),
        "place": _numbers(draws, 1)[:, :, 0],
        "counts_all": _column(draws, lambda one: float(one.top_k == 0)),
        "is_k": _column(draws, lambda one: float(0 < one.top_k <= CANDIDATES)),
    }


def _of_full(draws: Sequence[Draw]) -> Values:
    return _of_all(draws, _numbers(draws, ATTEMPTS))


def _of_nucleus(draws: Sequence[Draw]) -> Values:
    numbers = _numbers(draws, ATTEMPTS + 1)
    given = _of_all(draws, numbers[:, :ATTEMPTS]) | _inverse_temperature(draws)
    return given | {"top_p": _column(draws, lambda one: one.top_p), "places_after": numbers[:, 1:, 0]}


_KINDS: Final[Sequence[tuple[Graph, Callable[[Sequence[Draw]], Values]]]] = (
    (sampler_graphs.greedy, _of_greedy),
    (sampler_graphs.few, _of_few),
    (sampler_graphs.full, _of_full),
    (sampler_graphs.nucleus, _of_nucleus),
)
"""Rows that one graph draws, and what it is given for them beside the logits."""
_AMONG_CANDIDATES: Final = (sampler_graphs.few, sampler_graphs.nucleus)


def _numbers(draws: Sequence[Draw], attempts: int) -> npt.NDArray[np.float64]:
    """[rows, attempts, 2] in [0, 1)"""
    return noise.pairs(
        [draw.sampling.seed for draw in draws],
        [draw.choice for draw in draws],
        [draw.position for draw in draws],
        range(attempts),
    )


def _of_all(draws: Sequence[Draw], numbers: npt.NDArray[np.float64]) -> Values:
    """What the envelope is drawn from with."""
    return {
        "line_unit": _column(draws, lambda one: UNIT / one.temperature).astype(np.float32),
        "temperature": _column(draws, lambda one: one.temperature),
        "places": numbers[:, :, 0],
        "chances": numbers[:, :, 1],
    }


def _inverse_temperature(draws: Sequence[Draw]) -> Values:
    return {"inverse_temperature": _column(draws, lambda one: 1 / one.temperature).astype(np.float32)}


def _column(draws: Sequence[Draw], read: Callable[[Sampling], float]) -> npt.NDArray[np.float64]:
    """[rows, 1]"""
    return np.array([[read(draw.sampling)] for draw in draws], np.float64)
