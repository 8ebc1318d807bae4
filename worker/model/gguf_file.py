"""Reads the frame of a GGUF file: its metadata, and where each tensor lies.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#file-structure. All sizes in it come from whoever wrote the
file: what would lie behind its end is refused before it is read. Tensors stay in the file, quantized.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from worker.model import tensors
from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.weights import Place, StoredTensor, Tensor

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_DIMENSIONS_MAX: Final = 4
_DEPTH_MAX: Final = 4
_STEP_NUMBERS: Final = 1 << 18

_STRING, _ARRAY = 8, 9
_NUMBERS: Final = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8"}
_NUMBERS[12] = "<f8"

_KINDS: Final = tuple(
    gguf.GGMLQuantizationType[name]
    for name in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)

_PLAIN: Final[Mapping[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Types that are numbers as they lie."""

_Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a file holds."""

    values: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def read(path: Path) -> GgufFile:
    """Raises UnreadableWeights if it is not a whole GGUF file."""
    try:
        return _Reader(np.memmap(path, np.uint8, "r").data, path).file()
    except OSError as error:
        raise UnreadableWeights(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, OverflowError, struct.error) as error:
        raise UnreadableWeights(f"{path.name} is not a GGUF file, or not all of one ({error})") from error


@dataclass(frozen=True, slots=True)
class _Place:
    """What a file says of one tensor."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(slots=True)
class _Reader:
    """Goes through a file from its beginning; ValueError where it makes no sense."""

    view: memoryview
    path: Path
    place: int = 0

    def file(self) -> GgufFile:
        tensors.refuse_pointer(bytes(self.view[: tensors.BEGINNING_BYTES]), self.path)
        if bytes(self._take(4)) != _MAGIC:
            raise ValueError("it does not begin as one")
        version = self._number("<u4")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}")
        tensor_count, value_count = self._count(), self._count()
        metadata = dict(self._entry() for _ in range(value_count))
        places = [self._place_of_tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment}")
        start = self.place + -self.place % alignment
        stored = {place.name: self._stored(start, place) for place in places}
        if len(stored) < len(places):
            raise ValueError("two of its tensors have the same name")
        return GgufFile(metadata, stored)

    def _entry(self) -> tuple[str, Any]:
        key = self._text()
        return key, self._value(self._number("<u4"), _DEPTH_MAX)

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY and depth:
            return self._array(depth)
        if kind not in _NUMBERS:
            raise ValueError(f"it has a value of the type {kind}")
        return self._number(_NUMBERS[kind])

    def _array(self, depth: int) -> list[Any]:
        kind, count = self._number("<u4"), self._count()
        if kind in _NUMBERS:
            numbers = np.dtype(_NUMBERS[kind])
            values: list[Any] = np.frombuffer(self._take(count * numbers.itemsize), numbers).tolist()
            return values
        return [self._value(kind, depth - 1) for _ in range(count)]

    def _place_of_tensor(self) -> _Place:
        name, dimensions = self._text(), self._number("<u4")
        if dimensions > _DIMENSIONS_MAX:
            raise ValueError(f"tensor '{name}' has {dimensions} dimensions")
        shape = [self._number("<u8") for _ in range(dimensions)]
        shape.reverse()  # it counts from the innermost
        return _Place(name, tuple(shape), self._number("<u4"), self._number("<u8"))

    def _stored(self, start: int, place: _Place) -> StoredTensor:
        name, shape, kind = place.name, place.shape, place.kind
        if kind not in _KINDS:
            known = ", ".join(known.name for known in _KINDS)
            raise UnsupportedModel(f"tensor '{name}' is stored in the type {_type_name(kind)}; supported: {known}")
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        if not shape or shape[-1] % block:
            raise ValueError(f"tensor '{name}' has the shape {shape}")
        size_bytes = math.prod(shape) // block * block_bytes
        begin = start + place.offset
        if begin + size_bytes > len(self.view):
            raise ValueError(
                f"it ends after {len(self.view):,} bytes, and tensor '{name}' after {begin + size_bytes:,}"
            )
        path = self.path
        row_bytes = size_bytes // max(1, shape[0])

        def rows(first: int, end: int) -> Tensor:
            content = tensors.piece(path, np.dtype(np.uint8), (end - first) * row_bytes, begin + first * row_bytes)
            return _dequantized(content, gguf.GGMLQuantizationType(kind)).reshape(end - first, *shape[1:])

        element = _PLAIN.get(gguf.GGMLQuantizationType(kind).name)
        return StoredTensor(shape, rows, None if element is None else Place(path, begin, shape, element))

    def _text(self) -> str:
        return str(self._take(self._count()), "utf-8")

    def _count(self) -> int:
        """How many things follow; each takes a byte at least."""
        count = int(self._number("<u8"))
        if count > len(self.view) - self.place:
            raise ValueError(f"it ends before {count:,} things that should follow")
        return count

    def _number(self, kind: str) -> Any:
        return np.frombuffer(self._take(np.dtype(kind).itemsize), kind)[0].item()

    def _take(self, size_bytes: int) -> memoryview:
        end = self.place + size_bytes
        if end > len(self.view):
            raise ValueError("it ends too early")
        taken = self.view[self.place : end]
        self.place = end
        return taken


def _type_name(kind: int) -> str:
    return next((known.name for known in gguf.GGMLQuantizationType if known == kind), str(kind))


def _dequantized(content: _Bytes, kind: gguf.GGMLQuantizationType) -> Tensor:
    """Some blocks at a time, as one line: the library takes lines 16 at once, however short they are."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    values = np.empty(len(content) // block_bytes * block, np.float32)
    step = max(1, _STEP_NUMBERS // block)
    for first in range(0, len(content) // block_bytes, step):
        blocks = content[first * block_bytes : (first + step) * block_bytes]
        values[first * block : (first + step) * block] = gguf.dequantize(blocks[None, :], kind)[0]
    return values
