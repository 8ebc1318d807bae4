"""Runs the 8-bit graph of `worker.model.block_graph` on the CPU: all rows and a piece of one prompt at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from worker.engine.blocks import KINDS, BlockLayout, Blocks, NewTokens, RowBlocks, write_stretch
from worker.engine.runner import Span
from worker.engine.sampling import Logits

_ROWS_MIN = 2
"""The rows of a run, real or not: the reductions add the parts of a single row in another order."""


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """How much a `BlockRunner` may hold."""

    slots: int
    stages: int
    context_tokens: int
    blocks: int


class _Stage:
    """One sequence while it is computed: float32 [1, kv_heads, room, head_size] for each layer's keys and values,
    and what goes into blocks of it.
    """

    def __init__(self, layout: BlockLayout, room: int, session: ort.InferenceSession) -> None:
        shape = [1, layout.kv_heads, room, layout.head_size]
        self._arrays = [np.zeros(shape, np.float32) for _ in range(2 * layout.layers)]
        self.image = Blocks(layout, layout.blocks_for(room))
        self.binding = session.io_binding()
        for index, array in enumerate(self._arrays):
            name = f"{index // 2}.{('key', 'value')[index % 2]}"
            self.binding.bind_input(f"stage.{name}", "cpu", 0, np.float32, shape, array.ctypes.data)
            self.binding.bind_output(f"present.{name}", "cpu", 0, np.float32, shape, array.ctypes.data)


class BlockRunner:
    """A session, the rows' blocks and the stages. The methods are those of `Runner`."""

    mixes = True

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
        self._stages = [_Stage(layout, sizes.context_tokens + 1, session) for _ in range(sizes.stages)]
        self._nowhere = _Stage(layout, 2, session)
        """Where the token goes that stands for a prompt in a run that has none."""
        self._bound_blocks: dict[int, int] = {}
        self._logits = np.empty((sizes.slots + 1, vocabulary), np.float32)

    @property
    def stages(self) -> int:
        return len(self._stages)

    @property
    def free_tokens(self) -> int:
        return self._cache.free * self._layout.tokens

    def step(self, span: Span | None, token_ids: Sequence[int]) -> Logits:
        rows = len(token_ids)
        stage = self._nowhere if span is None else self._stages[span.stage]
        prompt = _whole_pairs(span)
        start = 0 if span is None else span.start
        padded = max(rows, _ROWS_MIN)
        empty = [0] * (padded - rows)
        ends = [padded + len(span.token_ids) - 1] if span is not None and span.ends_prompt else []
        wanted = [*ends, *range(rows)]
        positions = [*(self._cache.lengths if rows else ()), *empty, *range(start, start + len(prompt))]
        inputs: dict[str, npt.NDArray[Any]] = {
            "input_ids": np.array([*token_ids, *empty, *prompt], np.int64),
            "position_ids": np.array([positions], np.int64),
            "split": np.array([padded, len(prompt)], np.int64),
            "logits_indices": np.array(wanted or [0], np.int64),
            "block_rows": self._cache.block_rows() if rows else np.zeros(1, np.int64),
            "block_lengths": self._cache.block_lengths() if rows else np.zeros((1, 1, 1, 1), np.int64),
            "row_blocks": self._cache.row_blocks(padded) if rows else np.zeros((padded, 1), np.int64),
            "seqlens_k": np.array([start + len(prompt) - 1], np.int32),
            "total_sequence_length": np.array(start + len(prompt), np.int32),
        }
        new = self._run(stage, inputs)
        if rows:
            self._cache.append(new.part(0, rows))
        if span is not None:
            write_stretch(stage.image, start, new.part(padded, padded + len(span.token_ids)))
        return self._logits[: len(wanted)]

    def place(self, stage: int, length: int) -> int:
        return self._cache.add(self._stages[stage].image, length)

    def remove(self, row: int) -> None:
        self._cache.remove(row)

    def close(self) -> None:
        del self._session, self._stages, self._nowhere, self._blocks, self._cache

    def _run(self, stage: _Stage, inputs: dict[str, npt.NDArray[Any]]) -> NewTokens:
        """One run of the graph; ONNX Runtime lets go of the interpreter's lock meanwhile."""
        binding = stage.binding
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._bind_blocks(stage, len(inputs["block_rows"]))
        wanted = len(inputs["logits_indices"])
        logits = self._logits[:wanted]
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        new, new_scale = self._new_arrays(inputs["input_ids"].size)
        for name, array in (("new", new), ("new_scale", new_scale)):
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return self._new_tokens(new, new_scale)

    def _bind_blocks(self, stage: _Stage, used: int) -> None:
        """Bind the first blocks; it takes about 1 ms, and is left out where nothing changed."""
        if self._bound_blocks.get(id(stage)) == used:
            return
        for kind, array in zip(KINDS, self._blocks.arrays, strict=True):
            shape = (used, *array.shape[2:])
            for layer in range(self._layout.layers):
                address = array.ctypes.data + layer * array.strides[0]
                stage.binding.bind_input(f"blocks.{layer}.{kind}", "cpu", 0, array.dtype.type, shape, address)
        self._bound_blocks[id(stage)] = used

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


def _whole_pairs(span: Span | None) -> npt.NDArray[np.int64]:
    """A piece's tokens, and one more if they are odd: what follows a token has no say in it, and the next piece
    overwrites it.
    """
    token_ids = np.zeros(2, np.int64) if span is None else span.token_ids
    return np.concatenate([token_ids, np.zeros(len(token_ids) % 2, np.int64)])
