"""Runs an ONNX graph of GroupQueryAttention on slots, on the CPU or on CUDA: the same code, other memory and ports.

The operator sets the rules. Rows of one token each may have any pasts. A piece of more tokens with a past goes
alone. Past and present must be the same memory, or the whole cache is copied in every run. The rows lie in
the slots from 0 on, the stages in those behind.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from worker.engine.errors import OutOfBlocks
from worker.engine.rows import DeviceRows
from worker.engine.runner import Span
from worker.engine.slot_ports import IDS, WANTED, SlotPorts
from worker.engine.slots import HOST, Slots
from worker.engine.softmax import Logits

_BINDINGS_MAX = 256
_ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """The inputs of one run over the slots from first_slot on, one for each row of input_ids."""

    first_slot: int
    input_ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    """Of each row, after the run."""
    logits_indices: npt.NDArray[np.int64]


class SlotRunner:
    """A session, its KV cache, and bindings that stay from run to run. The methods are those of `Runner`."""

    mixes = False
    is_exact = False
    spans_max = 1

    def __init__(
        self, session: ort.InferenceSession, slots: Slots, ports: SlotPorts, stages: int, vocabulary: int
    ) -> None:
        self.vocabulary = vocabulary
        self.stages = stages
        self.slots = slots.count - stages
        self.context_tokens = self.page_tokens = slots.layout.length
        self._session = session
        self._slots = slots
        self._ports = ports
        self._lengths: list[int] = []
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}

    @property
    def free_tokens(self) -> int:
        return (self.slots - len(self._lengths)) * self.page_tokens

    def step(
        self, spans: Sequence[Span], token_ids: Sequence[int], unread: Collection[int] = ()
    ) -> Logits | DeviceRows:
        wanted = 0
        for span in spans:
            self._run(self._prompt(span), wanted)
            wanted += int(span.ends_prompt)
        if token_ids:
            count = len(token_ids)
            lengths = np.array(self._lengths, np.int32) + np.int32(1)
            ids = np.array(token_ids, np.int64).reshape(count, 1)
            read = np.array([row for row in range(count) if row not in unread], np.int64)
            self._run(_Inputs(0, ids, lengths, read), wanted)
            self._lengths = lengths.tolist()
            wanted += len(read)
        return self._ports.rows(wanted)

    def feeds(self, tokens: int, length: int) -> bool:  # noqa: ARG002  nothing that the row holds is moved
        """They take a run of their own, which costs what a step of so many rows costs."""
        return tokens >= len(self._lengths)

    def feed(self, row: int, token_ids: Sequence[int]) -> None:
        length = self._lengths[row] + len(token_ids)
        ids = np.array(token_ids, np.int64).reshape(1, -1)
        nobody = np.zeros(0, np.int64)
        self._run(_Inputs(row, ids, np.array([length], np.int32), nobody), 0)
        self._lengths[row] = length

    def rewind(self, row: int) -> None:
        self._lengths[row] -= 1

    def copy(self, source: int, target: int, length: int) -> None:
        self._slots.copy(self.slots + source, self.slots + target, length)

    def place(self, stage: int, length: int) -> int:
        row = len(self._lengths)
        if row == self.slots:
            raise OutOfBlocks(1, 0)
        self._slots.copy(self.slots + stage, row, length)
        self._lengths.append(length)
        return row

    def remove(self, row: int) -> None:
        length = self._lengths.pop()
        if row < len(self._lengths):
            self._slots.copy(len(self._lengths), row, length)
            self._lengths[row] = length

    def close(self) -> None:
        self._slots.close()
        self._bindings.clear()
        self._ports.close()
        del self._session

    def _prompt(self, span: Span) -> _Inputs:
        count = len(span.token_ids)
        ends = np.array([count - 1] if span.ends_prompt else [], np.int64)
        length = np.array([span.start + count], np.int32)
        return _Inputs(self.slots + span.stage, span.token_ids.reshape(1, count), length, ends)

    def _run(self, rows: _Inputs, first: int) -> None:
        """One run of the graph, which gives the logits from row `first` on; ONNX Runtime lets go of the interpreter's
        lock meanwhile.
        """
        wanted = rows.logits_indices
        if not len(wanted) and self._slots.device != HOST:
            wanted = np.zeros(1, np.int64)  # nobody reads it: CUDA starts no kernel over nothing
        inputs = {
            IDS: rows.input_ids,
            "seqlens_k": rows.lengths - np.int32(1),
            "total_sequence_length": np.array(rows.lengths.max(), np.int32),
            WANTED: wanted,
        }
        self._ports.run(self._session, self._binding(rows.first_slot, len(rows.lengths)), inputs, first)

    def _binding(self, first_slot: int, count: int) -> ort.IOBinding:
        """Past and present bound to `count` slots from the first; made once, as it takes most of a ms."""
        if (binding := self._bindings.get((first_slot, count))) is not None:
            return binding
        if len(self._bindings) == _BINDINGS_MAX:
            self._bindings.clear()
        binding = self._session.io_binding()
        layout = self._slots.layout
        for index, address in enumerate(self._slots.addresses):
            layer, kind = index // 2, ("key", "value")[index % 2]
            place = (
                layout.element.type,
                layout.shape(count),
                address + first_slot * layout.slot_bytes_per_array,
            )
            binding.bind_input(f"past_key_values.{layer}.{kind}", self._slots.device, 0, *place)
            binding.bind_output(f"present.{layer}.{kind}", self._slots.device, 0, *place)
        self._bindings[first_slot, count] = binding
        return binding


def cache_element(session: ort.InferenceSession) -> np.dtype[np.generic]:
    """The type of the keys and values that the graph wants."""
    kinds = {argument.name: argument.type for argument in session.get_inputs()}
    return np.dtype(_ELEMENTS[kinds["past_key_values.0.key"]])
