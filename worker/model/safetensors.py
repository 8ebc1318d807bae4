"""Reads safetensors: a JSON header that says where each tensor lies, then the tensors.

https://github.com/huggingface/safetensors#format. Files stay mapped; nothing is copied until a tensor is read.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from worker.model import config
from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.tensors import StoredTensor
from worker.model.weights import Tensor

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"

_HEADER_BYTES_MAX: Final = 100_000_000  # what the format itself allows

_Bytes = NDArray[np.uint8]


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
        content: _Bytes = np.asarray(np.memmap(path, np.uint8, "r"))
        header, start = _header(content)
        return {name: _stored(name, entry, content[start:]) for name, entry in header.items() if name != "__metadata__"}
    except OSError as error:
        raise UnreadableWeights(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableWeights(f"{path.name} is not a safetensors file, or not all of one ({error})") from error


def _header(content: _Bytes) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    length = int.from_bytes(content[:8].tobytes(), "little")
    if length > min(_HEADER_BYTES_MAX, len(content) - 8):
        raise ValueError(f"its header would have {length:,} bytes")
    header = json.loads(content[8 : 8 + length].tobytes())
    if not isinstance(header, dict):
        raise TypeError("its header is not a JSON object")
    return header, 8 + length


def _stored(name: str, entry: Mapping[str, Any], data: _Bytes) -> StoredTensor:
    shape, (begin, end), kind = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
    if kind not in _READERS:
        raise UnsupportedModel(f"tensor '{name}' is stored as {kind}; supported: {', '.join(_READERS)}")
    size_bytes, convert = _READERS[kind]
    if not all(isinstance(size, int) and size >= 0 for size in (*shape, begin, end)):
        raise ValueError(f"tensor '{name}' has no proper place")
    if end > len(data) or end - begin != math.prod(shape) * size_bytes:
        raise ValueError(f"tensor '{name}' does not lie where it should")
    return StoredTensor(shape, lambda: convert(data[begin:end]).reshape(shape))


def _bfloat16(content: _Bytes) -> Tensor:
    """The upper half of a float32."""
    wide = content.view("<u2").astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _plain(kind: str) -> Callable[[_Bytes], Tensor]:
    return lambda content: content.view(kind).astype(np.float32, copy=False)


_READERS: Final[Mapping[str, tuple[int, Callable[[_Bytes], Tensor]]]] = {
    "F32": (4, _plain("<f4")),
    "F16": (2, _plain("<f2")),
    "BF16": (2, _bfloat16),
    "F64": (8, _plain("<f8")),
}
"""Bytes of an element, and how to make float32 of it."""


def _index(folder: Path) -> dict[str, str]:
    """Which file each tensor is in."""
    found = config.read(folder / INDEX_NAME).part("weight_map").values
    for name in found.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UnreadableWeights(
                f"{folder.name}/{INDEX_NAME} points to {str(name)[:80]}, which is no file beside it"
            )
    return dict(found)
