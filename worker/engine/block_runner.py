"""Runs the 8-bit graph of `worker.model.block_graph` on the CPU: all rows and pieces of several prompts at once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from worker.engine import memory
from worker.engine import session as sessions
from worker.engine.blocks import KINDS, BlockLayout, Blocks, NewTokens, RowBlocks, write_stretch
from worker.engine.runner import Span
from worker.engine.softmax import Logits
from worker.model.block_ports import STAGES

Inputs = dict[str, npt.NDArray[Any]]
"""Of the graph, by name."""

_ROWS_MIN = 2
"""The rows of a run, real or not: the reductions add the parts of a single row in another order."""


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """How much a `BlockRunner` may hold."""

    slots: int
    context_tokens: int
    blocks: int


class _Stage:
    """One sequence while it is computed: `float32` [2 * layers, kv_heads, room, head_size] has each layer's keys,
    then its values, and `image` what goes into blocks of it.
    """

    def __init__(self, layout: BlockLayout, room: int) -> None:
        self.float32 = memory.zeros((2 * layout.layers, layout.kv_heads, room, layout.head_size), np.float32)
        self.image = Blocks(layout, layout.blocks_for(room))

    def begin_as(self, other: "_Stage", length: int) -> None:
        """Take over the first positions of another stage."""
        self.float32[:, :, :length] = other.float32[:, :, :length]
        self.image.copy(other.image, slice(0, self.image.layout.blocks_for(length)), 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Where a run has its tokens: first `rows`, `empty` of which are nobody's, then each span's."""

    rows: int
    empty: int
    spans: tuple[tuple[Span, int, int], ...]
    """Each with its start and its end."""

    @property
    def tokens(self) -> int:
        return self.spans[-1][2] if self.spans else self.rows

    @property
    def ends(self) -> list[int]:
        """The last tokens of prompts."""
        return [end - 1 for span, _, end in self.spans if span.ends_prompt]

    def inputs(self) -> Inputs:
        """Who attends where: rows first, then each stage's span, which is made even by its last token once more:
        what follows a token has no say in it, and the next piece overwrites it. A stage without a span gets the
        first row, twice.
        """
        of_stage = {span.stage: (span.start, range(start, end)) for span, start, end in self.spans}
        tokens, sizes, attended = [*range(self.rows)], [self.rows], [*range(self.tokens)]
        lengths = []
        for stage in range(STAGES):
            before, own = of_stage.get(stage, (0, range(0)))
            attended[own.start : own.stop] = range(len(tokens), len(tokens) + len(own))
            given = [*own, *own[len(own) - len(own) % 2 :]] if own else [0, 0]
            tokens += given
            sizes.append(len(given))
            lengths.append(before + len(given))
        return {
            "attention_tokens": np.array(tokens, np.int64),
            "attention_sizes": np.array(sizes, np.int64),
            "attended": np.array(attended, np.int64),
            "stage_lengths": np.array(lengths, np.int32),
        }


class BlockRunner:
    """A session, the rows' blocks and the stages. The methods are those of `Runner`."""

    mixes = True
    stages = spans_max = STAGES

    def __init__(
        self, session: ort.InferenceSession, layout: BlockLayout, sizes: BlockSizes, heads: int, vocabulary: int
    ) -> None:
        self.vocabulary = vocabulary
        self.slots = sizes.slots
        self.context_tokens = sizes.context_tokens
        self.page_tokens = layout.tokens
        self._session = session
        self._layout = layout
        self._heads = heads
        self._blocks = Blocks(layout, sizes.blocks)
        self._cache = RowBlocks(self._blocks)
        self._stages = [_Stage(layout, sizes.context_tokens + 1) for _ in range(STAGES)]
        self._nowhere = [_Stage(layout, 2) for _ in range(STAGES)]
        """Where the tokens go that a stage without a span is given."""
        self._binding = session.io_binding()
        self._bound_stages: list[_Stage | None] = [None] * STAGES
        self._bound_blocks = 0
        self._logits = np.empty((sizes.slots + STAGES, vocabulary), np.float32)

    @property
    def free_tokens(self) -> int:
        return self._cache.free * self._layout.tokens

    def step(self, spans: Sequence[Span], token_ids: Sequence[int], unread: Collection[int] = ()) -> Logits:
        rows = len(token_ids)
        places = _places(spans, rows)
        wanted = [*places.ends, *(row for row in range(rows) if row not in unread)]
        self._bind_stages(spans)
        inputs = self._tokens(places, token_ids) | places.inputs() | self._row_inputs(places)
        inputs["logits_indices"] = np.array(wanted or [0], np.int64)
        new = self._run(inputs)
        if rows:
            self._cache.append(new.part(0, rows))
        for span, start, end in places.spans:
            write_stretch(self._stages[span.stage].image, span.start, new.part(start, end))
        return self._logits[: len(wanted)]

    def feeds(self, tokens: int) -> bool:  # noqa: ARG002  a run of the graph takes one token of a row
        return False

    def feed(self, row: int, token_ids: Sequence[int]) -> None:
        raise NotImplementedError

    def copy(self, source: int, target: int, length: int) -> None:
        self._stages[target].begin_as(self._stages[source], length)

    def place(self, stage: int, length: int) -> int:
        return self._cache.add(self._stages[stage].image, length)

    def remove(self, row: int) -> None:
        self._cache.remove(row)

    def close(self) -> None:
        del self._session, self._binding, self._bound_stages, self._stages, self._nowhere, self._blocks, self._cache

    def _tokens(self, places: _Places, token_ids: Sequence[int]) -> Inputs:
        empty = [0] * places.empty
        ids = [np.array([*token_ids, *empty], np.int64), *(span.token_ids for span, _, _ in places.spans)]
        positions = [np.array([*(self._cache.lengths if token_ids else ()), *empty], np.int64)]
        positions += [np.arange(span.start, span.start + len(span.token_ids)) for span, _, _ in places.spans]
        return {"input_ids": np.concatenate(ids), "position_ids": np.concatenate(positions)[np.newaxis]}

    def _row_inputs(self, places: _Places) -> Inputs:
        if places.empty == places.rows:
            return {
                "block_rows": np.zeros(1, np.int64),
                "block_lengths": np.zeros((1, 1, 1, 1), np.int64),
                "row_blocks": np.zeros((places.rows, 1), np.int64),
            }
        return {
            "block_rows": self._cache.block_rows(),
            "block_lengths": self._cache.block_lengths(),
            "row_blocks": self._cache.row_blocks(places.rows),
        }

    def _run(self, inputs: Inputs) -> NewTokens:
        """One run of the graph; ONNX Runtime lets go of the interpreter's lock meanwhile."""
        binding = self._binding
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._bind_blocks(len(inputs["block_rows"]))
        wanted = len(inputs["logits_indices"])
        logits = self._logits[:wanted]
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        new, new_scale = self._new_arrays(inputs["input_ids"].size)
        for name, array in (("new", new), ("new_scale", new_scale)):
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        sessions.run(self._session, binding)
        return self._new_tokens(new, new_scale)

    def _bind_stages(self, spans: Sequence[Span]) -> None:
        """Bind the stages of these spans and for the others nowhere, as far as it changed: one takes about 1 ms."""
        stages = list(self._nowhere)
        for span in spans:
            stages[span.stage] = self._stages[span.stage]
        for number, stage in enumerate(stages):
            if self._bound_stages[number] is not stage:
                self._bound_stages[number] = stage
                self._bind_stage(number, stage)

    def _bind_stage(self, number: int, stage: _Stage) -> None:
        shape = (1, *stage.float32.shape[1:])
        for index, array in enumerate(stage.float32):
            name = f"{number}.{index // 2}.{('key', 'value')[index % 2]}"
            self._binding.bind_input(f"stages.{name}", "cpu", 0, np.float32, shape, array.ctypes.data)
            self._binding.bind_output(f"present.{name}", "cpu", 0, np.float32, shape, array.ctypes.data)

    def _bind_blocks(self, used: int) -> None:
        """Bind the first blocks; it takes about 1 ms, and is left out where nothing changed."""
        if self._bound_blocks == used:
            return
        for kind, array in zip(KINDS, self._blocks.arrays, strict=True):
            shape = (used, *array.shape[2:])
            for layer in range(self._layout.layers):
                address = array.ctypes.data + layer * array.strides[0]
                self._binding.bind_input(f"blocks.{layer}.{kind}", "cpu", 0, array.dtype.type, shape, address)
        self._bound_blocks = used

    def _new_arrays(self, tokens: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        shape = (self._layout.layers * tokens, self._heads + 2 * self._layout.kv_heads)
        return np.empty((*shape, self._layout.head_size), np.uint8), np.empty(shape, np.float32)

    def _new_tokens(self, new: npt.NDArray[np.uint8], new_scale: npt.NDArray[np.float32]) -> NewTokens:
        """Keys and values, from behind the queries."""
        layout, queries = self._layout, self._heads
        values = queries + layout.kv_heads
        eighths = new.reshape(layout.layers, -1, *new.shape[1:])
        scales = new_scale.reshape(layout.layers, -1, new_scale.shape[1])
        return NewTokens(
            eighths[:, :, queries:values], eighths[:, :, values:], scales[:, :, queries:values], scales[:, :, values:]
        )


def _places(spans: Sequence[Span], rows: int) -> _Places:
    padded = max(rows, _ROWS_MIN)
    ends = np.cumsum([padded, *(len(span.token_ids) for span in spans)]).tolist()
    return _Places(padded, padded - rows, tuple(zip(spans, ends, ends[1:], strict=False)))
