"""Tokens on their way from a device, and what they bring along."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from worker.engine.device.memory import DeviceMemory, Placed, aligned
from worker.engine.device.sampler_graph import DOUBLE, FLOAT, INT64
from worker.engine.errors import NothingToSample
from worker.engine.logprobs import TokenLogprob
from worker.engine.rows import UNSURE
from worker.engine.softmax import Ids, Logits

_TYPES = {INT64: np.int64, DOUBLE: np.float64, FLOAT: np.float32}


class Results:
    """What all runs of a drawing give, in one piece of memory: the tokens in `regions` of `rows_max` each, and behind
    them the log-probabilities of the drawn and the likeliest tokens of those rows that asked.
    """

    def __init__(self, memory: DeviceMemory, regions: int, rows_max: int, likeliest: int) -> None:
        self._memory = memory
        self._rows_max = rows_max
        self._widths = {"logprob": (DOUBLE, 1), "likeliest": (INT64, likeliest), "logprobs": (DOUBLE, likeliest)}
        self._widths |= {"peak": (FLOAT, 1)}
        self._tokens_bytes = 8 * regions * rows_max
        size_bytes = self._starts(rows_max)[-1]
        self.drawn = Placed(memory.allocate(size_bytes), INT64, (regions * rows_max,))
        self._host = memory.host_array(size_bytes)

    def region(self, number: int, start: int, rows: int) -> tuple[Placed, Ids]:
        """Where tokens of one kind of rows go, and which places of `drawn` these are, `start` and more places on."""
        first = number * self._rows_max + start
        return Placed(self.drawn.address + 8 * first, INT64, (rows, 1)), np.arange(first, first + rows)

    def told(self, rows: int, start: int, count: int) -> dict[str, Placed]:
        """Where the log-probabilities of some of so many rows go."""
        places = {}
        for (name, (kind, width)), first in zip(self._widths.items(), self._starts(rows)[1:-1], strict=True):
            skipped = start * width * np.dtype(_TYPES[kind]).itemsize
            places[name] = Placed(self.drawn.address + first + skipped, kind, (count, width))
        return places

    def send(self, told: int) -> Callable[[], None]:
        """Begin to bring the tokens to the host, and what so many rows were told; waits until it is there."""
        size_bytes = self._starts(told)[-1] if told else self._tokens_bytes
        self._memory.download(self._host[:size_bytes], self.drawn.address)
        return self._memory.mark()

    def tokens(self, places: Ids) -> Ids:
        """Those at some places, once they are here."""
        found: Ids = self._host[: self._tokens_bytes].view(np.int64)[places]
        return found

    def logprobs(self, rows: int) -> dict[str, list[list[float]]]:
        """What so many rows were told, once it is here: by name, of each row a list."""
        bounds = pairwise(self._starts(rows)[1:])
        return {
            name: self._host[start:stop].view(_TYPES[kind])[: rows * width].reshape(rows, width).tolist()
            for (name, (kind, width)), (start, stop) in zip(self._widths.items(), bounds, strict=True)
        }

    def _starts(self, rows: int) -> list[int]:
        """Of the tokens, and of each thing that so many rows are told; last, the end."""
        sizes = [rows * width * np.dtype(_TYPES[kind]).itemsize for kind, width in self._widths.values()]
        return aligned([self._tokens_bytes, *sizes])


class DeviceDrawing:
    """The methods are those of `Drawing`. `told` are those of the `rows` whose log-probabilities come along; what is
    `for_host` is drawn there in any case.
    """

    def __init__(
        self,
        rows: Ids,
        places: Ids,
        results: Results,
        fetch: Callable[[Ids], Logits],
        told: Sequence[int] = (),
        for_host: Sequence[int] = (),
        *,
        may_ask: bool = True,
    ) -> None:
        self.places = places
        self.tokens = self.fed = np.full(len(rows), UNSURE)
        self.may_ask = may_ask
        """Whole rows may be wanted later."""
        self._rows = rows
        self._results = results
        self._fetch = fetch
        self._told = {row: number for number, row in enumerate(told)}
        self._for_host = list(for_host)
        self._logprobs: dict[str, list[list[float]]] = {}
        self._arrived: Callable[[], None] | None = results.send(len(told))

    def wait(self) -> None:
        if self._arrived is None:
            return
        self._arrived()
        self._arrived = None
        self.fed = self._results.tokens(self.places)
        self.tokens = self.fed.copy()
        self.tokens[self._for_host] = UNSURE
        self._logprobs = self._results.logprobs(len(self._told)) if self._told else {}

    def logprob(self, row: int, top: int) -> TokenLogprob:
        told = {name: of_rows[self._told[row]] for name, of_rows in self._logprobs.items()}
        if not math.isfinite(told["peak"][0]):
            raise NothingToSample("the model's logits are not numbers")
        others = zip(told["likeliest"][:top], told["logprobs"][:top], strict=True)
        return TokenLogprob(told["logprob"][0], tuple((int(token), logprob) for token, logprob in others))

    def fetch(self, rows: Sequence[int]) -> Logits:
        return self._fetch(self._rows[list(rows)])
