"""Runs the small graphs over logits on a device: what they are given is sent there, what they give stays there."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy.typing as npt
import onnxruntime as ort
from onnx import helper

from worker.engine import session as sessions
from worker.engine.device.memory import DeviceMemory, Placed
from worker.engine.device.staging import Staging

Graph = Callable[[int, int], bytes]
"""Makes a graph for a vocabulary and for logits of a type."""
Open = Callable[[bytes], ort.InferenceSession]

_SENT_BYTES: Final = 2**20
"""In one drawing, to begin with."""


class DeviceGraphs:
    """`open_session` opens a graph on the device of `memory`. A session is opened when it is first asked for."""

    def __init__(self, memory: DeviceMemory, open_session: Open, vocabulary: int) -> None:
        self.memory = memory
        self.vocabulary = vocabulary
        self._open = open_session
        self._staging = Staging(memory, _SENT_BYTES)
        self._sessions: dict[tuple[Graph, int], ort.InferenceSession] = {}
        self._options = unsynchronized()

    def begin(self) -> None:
        """What was sent for the drawing before the last is not needed any more."""
        self._staging.turn()

    def opened(self, graph: Graph, element: int) -> ort.InferenceSession:
        """The session of a graph. OutOfMemory if it cannot be opened for want of it."""
        session = self._sessions.get((graph, element))
        if session is None:
            session = self._sessions[graph, element] = self._open(graph(self.vocabulary, element))
        return session

    def run(
        self,
        graph: Graph,
        element: int,
        given: Mapping[str, npt.NDArray[Any]],
        placed: Mapping[str, Placed],
        outputs: Mapping[str, Placed],
    ) -> None:
        """Begin one run, of the graph for logits (or whatever it says) of type `element`. OutOfMemory if it cannot."""
        session = self.opened(graph, element)
        binding = session.io_binding()
        addresses = self._staging.send(list(given.values())) if given else []
        for (name, array), address in zip(given.items(), addresses, strict=True):
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            self._bind(binding.bind_input, name, Placed(address, kind, array.shape))
        for name, place in placed.items():
            self._bind(binding.bind_input, name, place)
        for name, place in outputs.items():
            self._bind(binding.bind_output, name, place)
        sessions.run(session, binding, self._options)

    def close(self) -> None:
        """Give the sessions back."""
        self._sessions.clear()

    def _bind(self, bind: Callable[..., None], name: str, place: Placed) -> None:
        bind(name, self.memory.device, self.memory.index, place.element, list(place.shape), place.address)


def unsynchronized() -> ort.RunOptions:
    """For runs that return once they have begun, if all that they read and write has its place on the device. From ONNX
    Runtime 1.31 on, runs that are replayed do so too.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
