"""Rows in blocks against a list of tokens a row."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.blocks import BlockLayout, Blocks, Bytes, Floats, NewTokens, RowBlocks, Scales, write_stretch
from worker.engine.errors import OutOfBlocks

LAYOUT = BlockLayout(layers=2, kv_heads=3, head_size=5, tokens=4)
SHAPE = (LAYOUT.layers, LAYOUT.kv_heads)

Action = tuple[str, int]


def new_tokens(random: np.random.Generator, count: int) -> NewTokens:
    eighths = random.integers(0, 256, (2, LAYOUT.layers, count, LAYOUT.kv_heads, LAYOUT.head_size)).astype(np.uint8)
    scales = random.random((2, LAYOUT.layers, count, LAYOUT.kv_heads)).astype(np.float32)
    return NewTokens(*eighths, *scales)


def in_float32(eighths: Bytes, scale: Scales) -> Floats:
    return (eighths.astype(np.float32) - 128) * scale[..., np.newaxis]


@dataclass
class World:
    """What the cache should hold, one token after the other."""

    cache: RowBlocks
    blocks: Blocks
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    rows: list[list[NewTokens]] = field(default_factory=list)

    def add(self, length: int) -> None:
        image = Blocks(LAYOUT, 8)
        for array in image.arrays:
            array[:] = 77  # what was there before must not shine through
        tokens = [new_tokens(self.random, 1) for _ in range(length)]
        for position, token in enumerate(tokens):
            write_stretch(image, position, token)
        assert self.cache.add(image, length) == len(self.rows)
        self.rows.append(tokens)

    def append(self, left_out: int) -> None:
        """A token for every row but one; there may be no such row."""
        new, rows = new_tokens(self.random, len(self.rows)), [row for row in range(len(self.rows)) if row != left_out]
        if rows:
            self.cache.append(new.of(rows), rows)
        for row in rows:
            self.rows[row].append(new.part(row, row + 1))

    def extend(self, row: int, count: int) -> None:
        new = new_tokens(self.random, count)
        self.cache.extend(row, new)
        self.rows[row] += [new.part(place, place + 1) for place in range(count)]

    def remove(self, row: int) -> None:
        self.cache.remove(row)
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last

    def check(self) -> None:
        assert self.cache.lengths == [len(tokens) for tokens in self.rows]
        assert self.cache.used == 1 + sum(LAYOUT.blocks_for(len(tokens)) for tokens in self.rows)
        if not self.rows:
            return
        table = self.cache.row_blocks(len(self.rows) + 1)
        assert table.shape[1] % 4 == 1
        assert not table[-1].any()
        owners, lengths = self.cache.block_rows(), self.cache.block_lengths().ravel()
        assert lengths[0] == 0
        for row, tokens in enumerate(self.rows):
            owned = table[row][table[row] > 0]
            assert (owners[owned] == row).all()
            assert lengths[owned].sum() == len(tokens)
            floats = self.cache.floats(row, len(tokens) + 1)
            for position, token in enumerate(tokens):
                block, offset = owned[position // 4], position % 4
                assert np.array_equal(self.blocks.key[:, block, :, :, offset], token.key[:, 0])
                assert np.array_equal(self.blocks.value[:, block, :, offset], token.value[:, 0])
                assert np.array_equal(self.blocks.key_scale[:, block, :, 0, offset], token.key_scale[:, 0])
                assert np.array_equal(self.blocks.value_scale[:, block, :, 0, offset], token.value_scale[:, 0])
                assert np.array_equal(floats[::2, :, position], in_float32(token.key, token.key_scale)[:, 0])
                assert np.array_equal(floats[1::2, :, position], in_float32(token.value, token.value_scale)[:, 0])
            behind = len(tokens) % 4
            assert not behind or not self.blocks.value_scale[:, owned[-1], :, :, behind:].any()


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 20)),
            st.tuples(st.just("append"), st.integers(0, 9)),
            st.tuples(st.just("extend"), st.integers(0, 30)),
            st.tuples(st.just("remove"), st.integers(0, 30)),
        ),
        max_size=25,
    )
)
def test_every_row_keeps_its_tokens_and_the_blocks_have_no_holes(actions: list[Action]) -> None:
    blocks = Blocks(LAYOUT, 400)
    world = World(RowBlocks(blocks), blocks)
    for action, number in actions:
        if action == "add":
            world.add(number)
        elif action == "append" and world.rows:
            world.append(number)
        elif action == "extend" and world.rows:
            world.extend(number % len(world.rows), 1 + number % 11)
        elif action == "remove" and world.rows:
            world.remove(number % len(world.rows))
        world.check()


def test_a_stretch_may_begin_and_end_inside_blocks() -> None:
    whole, pieces = Blocks(LAYOUT, 4), Blocks(LAYOUT, 4)
    new = new_tokens(np.random.default_rng(1), 13)
    write_stretch(whole, 0, new)
    for start, stop in ((0, 3), (3, 4), (4, 11), (11, 13)):
        write_stretch(pieces, start, new.part(start, stop))
    for one, other in zip(whole.arrays, pieces.arrays, strict=True):
        assert np.array_equal(one, other)


def test_a_row_that_does_not_fit_is_refused_and_leaves_no_trace() -> None:
    blocks = Blocks(LAYOUT, 4)
    world = World(RowBlocks(blocks), blocks)
    world.add(8)
    with pytest.raises(OutOfBlocks):
        world.cache.add(Blocks(LAYOUT, 8), 5)
    world.check()
    assert world.cache.free == 1
