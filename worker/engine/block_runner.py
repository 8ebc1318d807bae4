"""Runs the 8-bit graph of `worker.model.block_graph` on the CPU: all rows and pieces of several prompts at once."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from worker.engine import memory
from worker.engine import session as sessions
from worker.engine.block_places import Inputs, Places, places_of
from worker.engine.blocks import KINDS, BlockLayout, Blocks, Floats, NewTokens, RowBlocks, write_stretch
from worker.engine.runner import Span
from worker.engine.softmax import Logits
from worker.model.block_ports import STAGES

LIFTED_MIN: Final = 8
"""The fewest tokens ahead of a step that are worth a lift: `docs/performance.md`."""
_HELD_MAX: Final = 64
"""So many positions of the row may be turned back for each of them."""


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
class _Lift:
    """A row's next tokens where there are many: what it holds is turned back to `float32`, as it would lie in a stage,
    and they are computed as a prompt's are, in the place of a stage that has nothing to do.
    """

    row: int
    span: Span
    float32: Floats


class BlockRunner:
    """A session, the rows' blocks and the stages. The methods are those of `Runner`.

    What is fed ahead waits for the step, whose run takes it beside all else; the row's own token comes behind it.
    """

    mixes = is_exact = True
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
        self._ahead: dict[int, Sequence[int]] = {}
        """Tokens that rows take in the next step before its own."""
        self._nowhere = [_Stage(layout, 2).float32 for _ in range(STAGES)]
        """Where the tokens go that a stage without a span is given."""
        self._binding = session.io_binding()
        self._bound_stages: list[Floats | None] = [None] * STAGES
        self._bound_blocks = 0
        self._logits = np.empty((sizes.slots + STAGES, vocabulary), np.float32)

    @property
    def free_tokens(self) -> int:
        return self._cache.free * self._layout.tokens

    def step(self, spans: Sequence[Span], token_ids: Sequence[int], unread: Collection[int] = ()) -> Logits:
        stretches = {row: [*ahead, token_ids[row]] for row, ahead in sorted(self._ahead.items())}
        self._ahead.clear()
        written = [row for row in range(len(token_ids)) if row not in stretches]
        read = [row for row in range(len(token_ids)) if row not in unread]
        idle = sorted(set(range(STAGES)) - {span.stage for span in spans})
        apart = self._compute_apart(list(stretches.items())[len(idle) :], read)
        lifts = [self._lift(stage, *stretch) for stage, stretch in zip(idle, stretches.items(), strict=False)]
        logits = self._compute(spans, lifts, token_ids, written, [row for row in read if row not in apart])
        if not apart:
            return logits
        ends = len(logits) + len(apart) - len(read)
        places = [ends + read.index(row) - before for before, row in enumerate(apart)]
        return np.insert(logits, places, list(apart.values()), axis=0)

    def feeds(self, tokens: int, length: int) -> bool:
        """By the text alone, because an answer's last bits depend on it."""
        return tokens >= LIFTED_MIN and length <= tokens * _HELD_MAX

    def feed(self, row: int, token_ids: Sequence[int]) -> None:
        self._ahead[row] = token_ids

    def rewind(self, row: int) -> None:
        raise NotImplementedError

    def copy(self, source: int, target: int, length: int) -> None:
        self._stages[target].begin_as(self._stages[source], length)

    def place(self, stage: int, length: int) -> int:
        return self._cache.add(self._stages[stage].image, length)

    def remove(self, row: int) -> None:
        self._cache.remove(row)

    def close(self) -> None:
        del self._session, self._binding, self._bound_stages, self._stages, self._nowhere, self._blocks, self._cache

    def _compute_apart(self, stretches: Sequence[tuple[int, list[int]]], read: Collection[int]) -> dict[int, Logits]:
        """Where there are more rows than idle stages: take the others' tokens in runs of their own. The logits of those
        that are read.
        """
        found: dict[int, Logits] = {}
        for first in range(0, len(stretches), STAGES):
            together = stretches[first : first + STAGES]
            lifts = [self._lift(stage, *stretch) for stage, stretch in enumerate(together)]
            rows = [row for row, _ in together if row in read]
            found |= zip(rows, self._compute([], lifts, [], [], rows).copy(), strict=True)
        return found

    def _lift(self, stage: int, row: int, token_ids: Sequence[int]) -> _Lift:
        length = self._cache.lengths[row]
        span = Span(stage, length, np.array(token_ids, np.int64), ends_prompt=False)
        return _Lift(row, span, self._cache.floats(row, length + len(token_ids) + 1))

    def _compute(
        self,
        spans: Sequence[Span],
        lifts: Sequence[_Lift],
        token_ids: Sequence[int],
        written: Sequence[int],
        read: Sequence[int],
    ) -> Logits:
        """One run: the logits at the ends of prompts, then those of the rows `read`. Only the rows `written` keep the
        token that they have in it.
        """
        places = places_of([*spans, *(lift.span for lift in lifts)], len(token_ids))
        lasts = {lift.row: places.last(lift.span.stage) for lift in lifts}
        wanted = [places.last(span.stage) for span in spans if span.ends_prompt]
        wanted += [lasts.get(row, row) for row in read]
        floats = {span.stage: self._stages[span.stage].float32 for span in spans}
        self._bind_stages(floats | {lift.span.stage: lift.float32 for lift in lifts})
        inputs = self._tokens(places, token_ids) | places.inputs() | self._row_inputs(places)
        inputs["logits_indices"] = np.array(wanted or [0], np.int64)
        new = self._run(inputs)
        if written:
            is_all = len(written) == len(token_ids)
            self._cache.append(new.part(0, len(written)) if is_all else new.of(written), written)
        for span, start, end in places.spans[: len(spans)]:
            write_stretch(self._stages[span.stage].image, span.start, new.part(start, end))
        for lift, (_, start, end) in zip(lifts, places.spans[len(spans) :], strict=True):
            self._cache.extend(lift.row, new.part(start, end))
        return self._logits[: len(wanted)]

    def _tokens(self, places: Places, token_ids: Sequence[int]) -> Inputs:
        empty = [0] * places.empty
        ids = [np.array([*token_ids, *empty], np.int64), *(span.token_ids for span, _, _ in places.spans)]
        positions = [np.array([*(self._cache.lengths if token_ids else ()), *empty], np.int64)]
        positions += [np.arange(span.start, span.start + len(span.token_ids)) for span, _, _ in places.spans]
        return {"input_ids": np.concatenate(ids), "position_ids": np.concatenate(positions)[np.newaxis]}

    def _row_inputs(self, places: Places) -> Inputs:
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

    def _bind_stages(self, used: Mapping[int, Floats]) -> None:
        """Bind these stages and for the others nowhere, as far as it changed: one takes about 1 ms."""
        for number, nowhere in enumerate(self._nowhere):
            floats = used.get(number, nowhere)
            if self._bound_stages[number] is not floats:
                self._bound_stages[number] = floats
                self._bind_stage(number, floats)

    def _bind_stage(self, number: int, floats: Floats) -> None:
        shape = (1, *floats.shape[1:])
        for index, array in enumerate(floats):
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
