"""The KV cache of the 8-bit graph: keys and values in blocks, kept without holes so that a run takes a prefix.

Block 0 is nobody's: it fills up rows that have fewer blocks than others. A row's blocks may lie anywhere
after it, in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from worker.engine import memory
from worker.engine.errors import OutOfBlocks

Bytes = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float32]

Floats = npt.NDArray[np.float32]

_ZERO: Final = np.float32(128)
"""What stands for zero among numbers without a sign."""

KINDS: Final = ("key", "value", "key_scale", "value_scale")


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Sizes of a block: `tokens` positions of every layer."""

    layers: int
    kv_heads: int
    head_size: int
    tokens: int

    @property
    def bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.tokens * (self.head_size + 4)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.tokens)


class Blocks:
    """Room for `count` blocks, which the system hands out page by page as they are first used.

    `key` is [layers, count, kv_heads, head_size, tokens] and `value` [layers, count, kv_heads, tokens,
    head_size] in 8 bits; the scales of both are [layers, count, kv_heads, 1, tokens].
    """

    def __init__(self, layout: BlockLayout, count: int) -> None:
        self.layout = layout
        self.count = count
        lead = (layout.layers, count, layout.kv_heads)
        self.key: Bytes = memory.zeros((*lead, layout.head_size, layout.tokens), np.uint8)
        self.value: Bytes = memory.zeros((*lead, layout.tokens, layout.head_size), np.uint8)
        self.key_scale: Scales = memory.zeros((*lead, 1, layout.tokens), np.float32)
        self.value_scale: Scales = memory.zeros((*lead, 1, layout.tokens), np.float32)

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """In the order of `KINDS`."""
        return self.key, self.value, self.key_scale, self.value_scale

    def copy(self, source: "Blocks", places: slice, target: int) -> None:
        """Copy neighbouring blocks of `source` to those from `target` on."""
        end = target + places.stop - places.start
        for mine, theirs in zip(self.arrays, source.arrays, strict=True):
            mine[:, target:end] = theirs[:, places]

    def write(self, block: int, offset: int, new: "NewTokens") -> None:
        """Put neighbouring tokens into a block, at `offset`."""
        end = offset + new.tokens
        self.key[:, block, :, :, offset:end] = new.key.transpose(0, 2, 3, 1)
        self.value[:, block, :, offset:end] = new.value.transpose(0, 2, 1, 3)
        self.key_scale[:, block, :, 0, offset:end] = new.key_scale.transpose(0, 2, 1)
        self.value_scale[:, block, :, 0, offset:end] = new.value_scale.transpose(0, 2, 1)

    def read(self, block: int, tokens: int) -> tuple[Floats, Floats]:
        """Keys and values of the first tokens of a block in float32, [layers, kv_heads, tokens, head_size] each."""
        key = self.key[:, block, :, :, :tokens].transpose(0, 1, 3, 2) - _ZERO
        value = self.value[:, block, :, :tokens] - _ZERO
        key *= self.key_scale[:, block, :, 0, :tokens, np.newaxis]
        value *= self.value_scale[:, block, :, 0, :tokens, np.newaxis]
        return key, value

    def forget_after(self, block: int, tokens: int) -> None:
        """What lies behind the first `tokens` of a block must have no say in how finely it is rounded."""
        self.value_scale[:, block, :, :, tokens:] = 0


@dataclass(frozen=True, slots=True, eq=False)
class NewTokens:
    """Keys and values of tokens, [layers, tokens, kv_heads, head_size]; their scales, [layers, tokens, kv_heads]."""

    key: Bytes
    value: Bytes
    key_scale: Scales
    value_scale: Scales

    @property
    def tokens(self) -> int:
        return int(self.key.shape[1])

    def of(self, tokens: Sequence[int]) -> "NewTokens":
        """Those of some tokens."""
        return NewTokens(
            self.key[:, tokens], self.value[:, tokens], self.key_scale[:, tokens], self.value_scale[:, tokens]
        )

    def part(self, start: int, stop: int) -> "NewTokens":
        return NewTokens(
            self.key[:, start:stop],
            self.value[:, start:stop],
            self.key_scale[:, start:stop],
            self.value_scale[:, start:stop],
        )


def write_stretch(blocks: Blocks, start: int, new: NewTokens) -> None:
    """Put neighbouring tokens at the positions from `start` on of blocks that hold one sequence from block 0."""
    size = blocks.layout.tokens
    done, count = 0, new.tokens
    while done < count:
        block, offset = divmod(start + done, size)
        part = new.part(done, min(count, done + size - offset))
        blocks.write(block, offset, part)
        done += part.tokens


class RowBlocks:
    """Which blocks each row has. Rows are 0 to `rows` - 1, without holes, like the blocks."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._tokens = blocks.layout.tokens
        self._owned: list[list[int]] = []
        self._lengths: list[int] = []
        self._owners: list[tuple[int, int]] = [(0, 0)]
        """Of each block in use, whose it is: the row and the place among its blocks. Nobody's is the first."""

    @property
    def rows(self) -> int:
        return len(self._owned)

    @property
    def used(self) -> int:
        """Blocks that a run has to take, nobody's included."""
        return len(self._owners)

    @property
    def free(self) -> int:
        return self._blocks.count - self.used

    @property
    def lengths(self) -> list[int]:
        """Of each row, its tokens."""
        return self._lengths

    def add(self, image: Blocks, length: int) -> int:
        """A new row that holds what the first `length` positions of `image` hold; gives its number."""
        first, count = self.used, self._blocks.layout.blocks_for(length)
        if count > self.free:
            raise OutOfBlocks(count, self.free)
        self._blocks.copy(image, slice(0, count), first)
        if length % self._tokens:
            self._blocks.forget_after(first + count - 1, length % self._tokens)
        row = self.rows
        self._owned.append(list(range(first, first + count)))
        self._owners.extend((row, place) for place in range(count))
        self._lengths.append(length)
        return row

    def append(self, new: NewTokens, rows: Sequence[int]) -> None:
        """One more token for each of some rows, in their order."""
        size, blocks = self._tokens, self._blocks
        lengths = [self._lengths[row] for row in rows]
        block = np.array([self._room(row, length) for row, length in zip(rows, lengths, strict=True)])
        offset = np.array(lengths) % size
        blocks.key[:, block, :, :, offset] = new.key.transpose(1, 0, 2, 3)
        blocks.value[:, block, :, offset] = new.value.transpose(1, 0, 2, 3)
        blocks.key_scale[:, block, :, 0, offset] = new.key_scale.transpose(1, 0, 2)
        blocks.value_scale[:, block, :, 0, offset] = new.value_scale.transpose(1, 0, 2)
        for row in rows:
            self._lengths[row] += 1

    def extend(self, row: int, new: NewTokens) -> None:
        """More tokens for one row."""
        done = 0
        while done < new.tokens:
            length = self._lengths[row]
            offset = length % self._tokens
            part = new.part(done, min(new.tokens, done + self._tokens - offset))
            self._blocks.write(self._room(row, length), offset, part)
            self._lengths[row] += part.tokens
            done += part.tokens

    def floats(self, row: int, room: int) -> Floats:
        """[2 * layers, kv_heads, room, head_size]: each layer's keys, then its values, of what a row holds, with room
        for more.
        """
        layout = self._blocks.layout
        floats = np.empty((2 * layout.layers, layout.kv_heads, room, layout.head_size), np.float32)
        for place, block in enumerate(self._owned[row]):
            start, tokens = place * self._tokens, self._filled(row, place)
            floats[::2, :, start : start + tokens], floats[1::2, :, start : start + tokens] = self._blocks.read(
                block, tokens
            )
        return floats

    def remove(self, row: int) -> None:
        """Give a row's blocks back; the last row takes its number, the last blocks take their places."""
        for block in sorted(self._owned[row], reverse=True):
            self._fill(block)
        last = self.rows - 1
        if row != last:
            self._owned[row], self._lengths[row] = self._owned[last], self._lengths[last]
            for place, block in enumerate(self._owned[row]):
                self._owners[block] = row, place
        del self._owned[last], self._lengths[last]

    def block_rows(self) -> npt.NDArray[np.int64]:
        """[used]: the row of each block."""
        return np.array([row for row, _ in self._owners], np.int64)

    def block_lengths(self) -> npt.NDArray[np.int64]:
        """[used, 1, 1, 1]: the tokens in each block."""
        lengths = [0, *(self._filled(row, place) for row, place in self._owners[1:])]
        return np.array(lengths, np.int64).reshape(-1, 1, 1, 1)

    def row_blocks(self, rows: int) -> npt.NDArray[np.int64]:
        """[rows, 1 more than a multiple of 4]: the blocks of each row in the order of its text, then 0."""
        widest = max(map(len, self._owned))
        table = np.zeros((rows, 1 + -(-(widest - 1) // 4) * 4), np.int64)
        for row, owned in enumerate(self._owned):
            table[row, : len(owned)] = owned
        return table

    def _filled(self, row: int, place: int) -> int:
        return min(self._tokens, self._lengths[row] - place * self._tokens)

    def _room(self, row: int, length: int) -> int:
        """The block for the token at position `length` of a row."""
        owned = self._owned[row]
        if length == len(owned) * self._tokens:
            if not self.free:
                raise OutOfBlocks(1, 0)
            block = self.used
            self._owners.append((row, len(owned)))
            owned.append(block)
            self._blocks.forget_after(block, 0)
        return owned[length // self._tokens]

    def _fill(self, hole: int) -> None:
        last = self.used - 1
        row, place = self._owners.pop()
        if hole != last:
            self._blocks.copy(self._blocks, slice(last, last + 1), hole)
            self._owners[hole] = row, place
            self._owned[row][place] = hole
