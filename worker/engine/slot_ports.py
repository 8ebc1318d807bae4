"""Where runs over slots read their inputs and leave their logits: in this process's memory, or on a card."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import helper

from worker.engine import session as sessions
from worker.engine.device.graphs import unsynchronized
from worker.engine.device.logits import DeviceLogits
from worker.engine.device.memory import DeviceMemory, Placed
from worker.engine.device.rows import SourceRows
from worker.engine.device.sampler import DeviceSampler
from worker.engine.device.staging import Staging
from worker.engine.rows import DeviceRows
from worker.engine.slots import HOST
from worker.engine.softmax import Logits

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]

IDS: Final = "input_ids"
WANTED: Final = "logits_indices"

_LOGITS: Final = "logits"
_SENT_BYTES: Final = 2**16
"""In one run, to begin with."""


class SlotPorts(Protocol):
    """The two ends of the runs of one session."""

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding, inputs: Inputs, first: int) -> None:
        """Run on some inputs what is bound; as many rows of logits as it gives are those from number `first` on.
        OutOfMemory if it did not happen.
        """
        ...

    def rows(self, count: int) -> Logits | DeviceRows:
        """The first rows of the logits; the caller's until the next run."""
        ...

    def close(self) -> None:
        """Give back what is not memory of a device."""
        ...


class HostPorts:
    """In memory of this process, for up to `rows_max` rows. A run has ended when it returns."""

    def __init__(self, rows_max: int, vocabulary: int) -> None:
        self._logits = np.empty((rows_max, vocabulary), np.float32)

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding, inputs: Inputs, first: int) -> None:
        logits = self._logits[first : first + len(inputs[WANTED])]
        for name, array in inputs.items():
            _bind_here(binding, name, array)
        binding.bind_output(_LOGITS, HOST, 0, np.float32, logits.shape, logits.ctypes.data)
        sessions.run(session, binding)

    def rows(self, count: int) -> Logits:
        return self._logits[:count]

    def close(self) -> None:
        """Nothing is held."""


class DevicePorts:
    """On a card, where tokens are drawn too. A run may not have begun when it returns; what it reads is sent through
    buffers that stay as they are until then, but for the inputs `on_host`, which ONNX Runtime reads before it returns.
    """

    def __init__(
        self, memory: DeviceMemory, logits: DeviceLogits, sampler: DeviceSampler, on_host: AbstractSet[str]
    ) -> None:
        self._memory = memory
        self._logits = logits
        self._sampler = sampler
        self._on_host = on_host
        self._staging = Staging(memory, _SENT_BYTES)
        self._options = unsynchronized()

    def run(self, session: ort.InferenceSession, binding: ort.IOBinding, inputs: Inputs, first: int) -> None:
        for name, place in self._sent(inputs).items():
            binding.bind_input(name, *self._device, place.element, list(place.shape), place.address)
        for name in self._on_host & inputs.keys():
            _bind_here(binding, name, inputs[name])
        place = self._logits.rows_from(first, len(inputs[WANTED]))
        binding.bind_output(_LOGITS, *self._device, place.element, list(place.shape), place.address)
        sessions.run(session, binding, self._options)

    def rows(self, count: int) -> DeviceRows:
        return SourceRows(self._logits, self._sampler, np.arange(count))

    def close(self) -> None:
        self._sampler.close()

    @property
    def _device(self) -> tuple[str, int]:
        return self._memory.device, self._memory.index

    def _sent(self, inputs: Inputs) -> dict[str, Placed]:
        """Where on the card the inputs are, once they are there; tokens that are still being drawn, too."""
        sent = {name: array for name, array in inputs.items() if name not in self._on_host}
        self._staging.turn()
        addresses = self._staging.send(list(sent.values()))
        places = {
            name: Placed(address, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for (name, array), address in zip(sent.items(), addresses, strict=True)
        }
        if (inputs[IDS] < 0).any():
            ids = places[IDS]
            self._sampler.fill(Placed(ids.address, ids.element, (inputs[IDS].size,)))
        return places


def _bind_here(binding: ort.IOBinding, name: str, array: Array) -> None:
    binding.bind_input(name, HOST, 0, array.dtype.type, array.shape, array.ctypes.data)
