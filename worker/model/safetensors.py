"""Reads safetensors: a JSON header that says where each tensor lies, then the tensors.

https://github.com/huggingface/safetensors#format. Tensors stay in their files until they are asked for. Files are not
mapped, for the pages that were read would count as memory of this process.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from worker.model import config, tensors
from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.weights import Place, StoredTensor, Tensor

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"

_HEADER_BYTES_MAX: Final = 100_000_000  # what the format itself allows


def files_of(folder: Path) -> list[Path]:
    """The files that hold a model's weights. Raises UnreadableWeights if there are none."""
    if (folder / INDEX_NAME).exists():
        return [folder / name for name in sorted(set(_index(folder).values()))]
    if (folder / SINGLE_NAME).exists():
        return [folder / SINGLE_NAME]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise UnreadableWeights(f"{folder.name} has neither {SINGLE_NAME} nor {INDEX_NAME}")
    return found


def read(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model, by name. Raises UnreadableWeights for a file that is missing, cut or not one."""
    stored: dict[str, StoredTensor] = {}
    for path in files_of(folder):
        stored |= read_file(path)
    if (folder / INDEX_NAME).exists() and (missing := sorted(_index(folder).keys() - stored.keys())):
        raise UnreadableWeights(f"{folder.name} lacks {len(missing)} tensors of its index, such as '{missing[0]}'")
    return stored


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            tensors.refuse_pointer(file.read(tensors.BEGINNING_BYTES), path)
            file.seek(0)
            header, start = _header(file, size_bytes)
        return {
            name: _stored(name, entry, path, start, size_bytes)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise UnreadableWeights(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableWeights(f"{path.name} is not a safetensors file, or not all of one ({error})") from error


def _header(file: BinaryIO, size_bytes: int) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(_HEADER_BYTES_MAX, size_bytes - 8):
        raise ValueError(f"its header would have {length:,} bytes")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise TypeError("its header is not a JSON object")
    return header, 8 + length


def _stored(name: str, entry: Mapping[str, Any], path: Path, start: int, size_bytes: int) -> StoredTensor:
    shape, (begin, end), kind = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
    if kind not in _READERS:
        raise UnsupportedModel(f"tensor '{name}' is stored as {kind}; supported: {', '.join(_READERS)}")
    element, convert = _READERS[kind]
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, begin, end)):
        raise ValueError(f"tensor '{name}' has no proper place")
    if end - begin != math.prod(shape) * element.itemsize:
        raise ValueError(f"tensor '{name}' does not lie where it should")
    if start + end > size_bytes:
        raise ValueError(f"it ends after {size_bytes:,} bytes, and tensor '{name}' after {start + end:,}")
    width = math.prod(shape[1:])

    def rows(first: int, last: int) -> Tensor:
        offset = start + begin + first * width * element.itemsize
        numbers = tensors.piece(path, element, (last - first) * width, offset)
        return convert(numbers).reshape(last - first, *shape[1:])

    return StoredTensor(shape, rows, Place(path, start + begin, shape, _STORED.get(kind, element)))


def _widened(bits: NDArray[Any]) -> Tensor:
    """bfloat16 is the upper half of a float32."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _plain(values: NDArray[Any]) -> Tensor:
    return values.astype(np.float32, copy=False)


_READERS: Final[Mapping[str, tuple[np.dtype[Any], Callable[[NDArray[Any]], Tensor]]]] = {
    "F32": (np.dtype("<f4"), _plain),
    "F16": (np.dtype("<f2"), _plain),
    "BF16": (np.dtype("<u2"), _widened),
    "F64": (np.dtype("<f8"), _plain),
}
"""What an element is read as, and how to make float32 of it."""
_STORED: Final[Mapping[str, np.dtype[Any]]] = {"BF16": np.dtype(ml_dtypes.bfloat16)}
"""What it is, where that is something else."""


def _index(folder: Path) -> dict[str, str]:
    """Which file each tensor is in."""
    found = config.read(folder / INDEX_NAME).part("weight_map").values
    for name in found.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UnreadableWeights(
                f"{folder.name}/{INDEX_NAME} points to {str(name)[:80]}, which is no file beside it"
            )
    return dict(found)
