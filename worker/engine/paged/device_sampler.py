"""Draws the next tokens of rows whose logits are on a device: the same tokens as `worker.engine.sampling` draws.

Rows of one kind are drawn in one run: greedy ones, those that leave few tokens, and those that leave many. What a run
was not sure of comes to the host as a whole row: some rows in ten thousand, and those of a top_p that so many tokens
share that they are not among the candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from worker.engine import noise, sampling
from worker.engine import session as sessions
from worker.engine.envelope import UNIT
from worker.engine.paged import sampler_graphs
from worker.engine.paged.memory import DeviceMemory
from worker.engine.paged.sampler_graphs import ATTEMPTS, CANDIDATES
from worker.engine.sampling import NO_TOKEN, Draw
from worker.engine.softmax import Logits

Ids = npt.NDArray[np.int64]
Values = dict[str, npt.NDArray[Any]]
Open = Callable[[bytes], ort.InferenceSession]

_NO_TOP_P: Final = 2.0
"""More than all tokens have together."""


class DeviceSampler:
    """`open_session` opens a graph on the device of `memory`; `element` is ONNX's number of the logits' type."""

    def __init__(
        self, memory: DeviceMemory, open_session: Open, address: int, vocabulary: int, element: int, rows_max: int
    ) -> None:
        self._memory = memory
        self._open = open_session
        self._logits = address, element, [rows_max, vocabulary]
        make: dict[str, Callable[..., bytes]] = {
            "greedy": sampler_graphs.greedy,
            "few": sampler_graphs.few,
            "full": partial(sampler_graphs.full, with_mass=False),
            "nucleus": partial(sampler_graphs.full, with_mass=True),
        }
        self._graphs: Mapping[str, Callable[[], bytes]] = {
            name: partial(graph, vocabulary, element) for name, graph in make.items()
        }
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._few_max = min(CANDIDATES, vocabulary)

    def draw(self, rows: Ids, draws: Sequence[Draw], fetch: Callable[[Ids], Logits]) -> Ids:
        """The next token of each of `rows` of the logits, NO_TOKEN where none is left. `fetch` gives whole rows."""
        tokens = np.full(len(rows), NO_TOKEN, np.int64)
        kinds = np.array([_kind(draw) for draw in draws])
        numbers = _numbers(draws) if (kinds != "greedy").any() else np.zeros((len(rows), 0, 2))
        unsure = np.zeros(len(rows), bool)
        for kind, run in (
            ("greedy", self._greedy),
            ("few", self._few),
            ("full", self._full),
            ("nucleus", self._nucleus),
        ):
            meant = np.flatnonzero(kinds == kind)
            if len(meant):
                chosen = [draws[place] for place in meant.tolist()]
                tokens[meant], unsure[meant] = run(rows[meant], chosen, numbers[meant])
        left = np.flatnonzero(unsure)
        if len(left):
            tokens[left] = sampling.sample(fetch(rows[left]), [draws[place] for place in left.tolist()])
        return tokens

    def close(self) -> None:
        """Give the sessions back."""
        self._sessions.clear()

    def _greedy(self, rows: Ids, draws: Sequence[Draw], numbers: Any) -> tuple[Ids, Any]:  # noqa: ARG002
        found = self._run("greedy", rows, {}, ("peak", "peak_token"))
        return _where_finite(found["peak"], found["peak_token"]), np.zeros(len(rows), bool)

    def _few(self, rows: Ids, draws: Sequence[Draw], numbers: Any) -> tuple[Ids, Any]:
        return self._draw_of_few(rows, draws, numbers[:, 0, 0])

    def _full(self, rows: Ids, draws: Sequence[Draw], numbers: Any) -> tuple[Ids, Any]:
        found = self._run("full", rows, _of_all(draws, numbers), ("token", "is_accepted", "peak"))
        return _where_finite(found["peak"], found["token"]), ~found["is_accepted"][:, 0]

    def _nucleus(self, rows: Ids, draws: Sequence[Draw], numbers: Any) -> tuple[Ids, Any]:
        given = _of_all(draws, numbers) | _inverse_temperature(draws)
        found = self._run("nucleus", rows, given, ("token", "attempt", "is_accepted", "mass", "total", "peak"))
        tokens, unsure = _where_finite(found["peak"], found["token"]), ~found["is_accepted"][:, 0]
        share = _column(draws, lambda one: one.top_p)[:, 0]
        again = np.flatnonzero(~unsure & ~(found["mass"][:, 0] < share * found["total"][:, 0]))
        if len(again):
            # None of the nucleus: it is drawn from, with the number that follows those that were used.
            following = found["attempt"][again, 0] + 1
            chosen = [draws[place] for place in again.tolist()]
            places = numbers[again, following, 0]
            tokens[again], unsure[again] = self._draw_of_few(rows[again], chosen, places)
        return tokens, unsure

    def _draw_of_few(self, rows: Ids, draws: Sequence[Draw], places: Any) -> tuple[Ids, Any]:
        top_k = _column(draws, lambda one: min(one.top_k or self._few_max, self._few_max))
        is_k = np.array([0 < draw.sampling.top_k <= self._few_max for draw in draws])
        top_p = _column(draws, lambda one: one.top_p if one.top_p < 1 else _NO_TOP_P)
        min_p = _column(draws, lambda one: one.min_p)
        given = _inverse_temperature(draws) | {
            "temperature": _column(draws, lambda one: one.temperature),
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "place": np.array(places, np.float64)[:, None],
            "counts_all": _column(draws, lambda one: float(one.top_k == 0)),
        }
        found = self._run("few", rows, given, ("token", "covered", "mass", "least", "peak"))
        has_all = (found["covered"] >= found["mass"]) | (found["least"] < min_p)
        return _where_finite(found["peak"], found["token"]), ~(is_k | has_all[:, 0])

    def _run(self, name: str, rows: Ids, given: Values, wanted: Sequence[str]) -> Values:
        """One run of a graph; what it gives is on the host."""
        if name not in self._sessions:
            self._sessions[name] = self._open(self._graphs[name]())
        session = self._sessions[name]
        binding = session.io_binding()
        address, element, shape = self._logits
        binding.bind_input("logits", self._memory.device, self._memory.index, element, shape, address)
        for key, value in (given | {"rows": rows}).items():
            binding.bind_cpu_input(key, np.ascontiguousarray(value))
        for key in wanted:
            binding.bind_output(key, "cpu")
        sessions.run(session, binding)
        return dict(zip(wanted, binding.copy_outputs_to_cpu(), strict=True))


def _kind(draw: Draw) -> str:
    one = draw.sampling
    if one.is_greedy:
        return "greedy"
    if one.top_k or one.min_p:
        return "few"
    return "nucleus" if one.top_p < 1 else "full"


def _numbers(draws: Sequence[Draw]) -> npt.NDArray[np.float64]:
    """[rows, ATTEMPTS + 1, 2] in [0, 1): one more than the envelope has, for the draw from the nucleus."""
    return noise.pairs(
        [draw.sampling.seed for draw in draws],
        [draw.choice for draw in draws],
        [draw.position for draw in draws],
        range(ATTEMPTS + 1),
    )


def _of_all(draws: Sequence[Draw], numbers: Any) -> Values:
    """What the envelope is drawn from with."""
    return {
        "line_unit": _column(draws, lambda one: UNIT / one.temperature).astype(np.float32),
        "temperature": _column(draws, lambda one: one.temperature),
        "places": numbers[:, :ATTEMPTS, 0],
        "chances": numbers[:, :ATTEMPTS, 1],
    }


def _inverse_temperature(draws: Sequence[Draw]) -> Values:
    return {"inverse_temperature": _column(draws, lambda one: 1 / one.temperature).astype(np.float32)}


def _column(draws: Sequence[Draw], read: Callable[[sampling.Sampling], float]) -> npt.NDArray[np.float64]:
    """[rows, 1]"""
    return np.array([[read(draw.sampling)] for draw in draws], np.float64)


def _where_finite(peaks: Any, tokens: Any) -> Ids:
    """[rows]"""
    found: Ids = np.where(np.isfinite(peaks[:, 0]), tokens[:, 0], NO_TOKEN)
    return found
