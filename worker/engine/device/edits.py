"""Changes rows of logits where they lie, before tokens are drawn from them: biases, then penalties, then masks.

What is changed is sent as it is on the host: for each token that is concerned its place and a value, and of a mask its
bits. A row without any of it is left where it is.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.engine.device import edit_graphs
from worker.engine.device.graphs import DeviceGraphs, Graph
from worker.engine.device.memory import Placed
from worker.engine.device.sampler_graph import FLOAT
from worker.engine.rows import Wish
from worker.engine.sampling import Mask
from worker.engine.softmax import Ids

Lists = dict[str, npt.NDArray[Any]]


class DeviceEdits:
    """Two places for up to `rows_max` rows, taken when first needed: each graph reads one and writes the other."""

    def __init__(self, graphs: DeviceGraphs, rows_max: int) -> None:
        self._graphs = graphs
        self._rows_max = rows_max
        self._addresses: list[int] = []

    def apply(self, logits: Placed, rows: Ids, wishes: Sequence[Wish]) -> tuple[Placed, Ids]:
        """Where the changed rows lie, and which they are there: as they were if nothing is to be changed yet."""
        targets = cycle(self._places())
        vocabulary = self._graphs.vocabulary
        lists: tuple[tuple[Graph, Lists | None], ...] = (
            (edit_graphs.biased, _biases(wishes, vocabulary)),
            (edit_graphs.penalised, _penalties(wishes, vocabulary)),
            (edit_graphs.masked, _masks(wishes, vocabulary)),
        )
        for graph, given in lists:
            if given is not None:
                edited = Placed(next(targets), FLOAT, (len(rows), vocabulary))
                self._graphs.run(graph, logits.element, {"rows": rows, **given}, {"logits": logits}, {"edited": edited})
                logits, rows = edited, np.arange(len(rows))
        return logits, rows

    def _places(self) -> Sequence[int]:
        while len(self._addresses) < 2:
            size_bytes = self._rows_max * self._graphs.vocabulary * 4
            self._addresses.append(self._graphs.memory.allocate(size_bytes))
        return self._addresses


def _biases(wishes: Sequence[Wish], vocabulary: int) -> Lists | None:
    found = [wish.adjustment.biases if wish.adjustment is not None else None for wish in wishes]
    ids, biases = [pair[0] if pair else _NO_IDS for pair in found], [pair[1] for pair in found if pair]
    if not any(map(len, ids)):
        return None
    return {"places": _placed(ids, vocabulary), "biases": np.concatenate(biases)}


def _penalties(wishes: Sequence[Wish], vocabulary: int) -> Lists | None:
    found = [wish.adjustment.repeats if wish.adjustment is not None else None for wish in wishes]
    ids = [repeats.ids if repeats is not None else _NO_IDS for repeats in found]
    if not any(map(len, ids)):
        return None
    samplings = [wish.draw.sampling for wish in wishes]
    return {
        "places": _placed(ids, vocabulary),
        "counts": np.concatenate([repeats.counts for repeats in found if repeats is not None]),
        "repetition": np.array([one.repetition_penalty for one in samplings], np.float32),
        "frequency": np.array([one.frequency_penalty for one in samplings], np.float32),
        "presence": np.array([one.presence_penalty for one in samplings], np.float32),
    }


def _masks(wishes: Sequence[Wish], vocabulary: int) -> Lists | None:
    if all(wish.mask is None for wish in wishes):
        return None
    masks = np.full((len(wishes), edit_graphs.mask_bytes(vocabulary)), 255, np.uint8)
    for row, wish in zip(masks, wishes, strict=True):
        if wish.mask is not None:
            own = _bytes(wish.mask)[: len(row)]
            row[: len(own)], row[len(own) :] = own, 0
    return {"masks": masks}


def _bytes(mask: Mask) -> npt.NDArray[np.uint8]:
    return mask.astype("<u4", copy=False).view(np.uint8)


def _placed(ids: Sequence[Ids], vocabulary: int) -> npt.NDArray[np.int32]:
    """The places in all rows of each row's ids."""
    places = np.concatenate([row * vocabulary + own for row, own in enumerate(ids)])
    return places.astype(np.int32)


_NO_IDS: Ids = np.zeros(0, np.int64)
