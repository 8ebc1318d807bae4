"""Puts an ONNX graph that others made, and its weights from whatever files they lie in, into a model folder.

Weights are copied piece by piece, so it takes little memory however large they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from onnx import ModelProto, TensorProto

from worker.model.errors import UnreadableWeights
from worker.model.onnx_file import GRAPH_NAME, WEIGHTS_NAME

_ALIGNMENT_BYTES: Final = 4096  # a page, so that a mapped tensor starts on one
_INSIDE_BYTES_MAX: Final = 1024  # of a weight that may stay in the graph
_COPY_BYTES: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    size_bytes: int


def files_of(model: ModelProto, folder: Path) -> list[Path]:
    """The files beside the graph that hold its weights. Raises UnreadableWeights for one that is not beside it."""
    return sorted({_place(tensor, folder).path for tensor in _outside(model)})


def write(model: ModelProto, source: Path, target: Path) -> None:
    """Write model.onnx and model.onnx.data into `target`, of a graph that lies in `source`; changes `model`.

    Raises UnreadableWeights for weights that are not where the graph says.
    """
    places: dict[_Place, int] = {}  # tied weights lie at the same place
    with (target / WEIGHTS_NAME).open("wb") as file:
        for tensor in _outside(model):
            place = _place(tensor, source)
            if place not in places:
                places[place] = _copy(place, file)
            _point(tensor, places[place], place.size_bytes)
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) > _INSIDE_BYTES_MAX:
                offset = _align(file)
                size_bytes = file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
                _point(tensor, offset, size_bytes)
    (target / GRAPH_NAME).write_bytes(model.SerializeToString(deterministic=True))


def _outside(model: ModelProto) -> Iterator[TensorProto]:
    return (tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL)


def _place(tensor: TensorProto, folder: Path) -> _Place:
    said = {entry.key: entry.value for entry in tensor.external_data}
    name = said.get("location", "")
    if not name or Path(name).name != name:
        raise UnreadableWeights(
            f"weight '{tensor.name}' lies in {name[:80] or 'no file'}, which is not beside its graph"
        )
    path = folder / name
    try:
        end = path.stat().st_size
        offset = int(said.get("offset", "0"))
        size_bytes = int(said.get("length", str(end - offset)))
    except OSError as error:
        raise UnreadableWeights(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UnreadableWeights(f"weight '{tensor.name}' has no proper place in {name} ({error})") from error
    if offset < 0 or size_bytes < 0 or offset + size_bytes > end:
        raise UnreadableWeights(f"weight '{tensor.name}' ends behind the end of {name}")
    return _Place(path, offset, size_bytes)


def _copy(place: _Place, file: BinaryIO) -> int:
    """Append a piece of another file; gives where it begins."""
    start, left = _align(file), place.size_bytes
    with place.path.open("rb") as source:
        source.seek(place.offset)
        while left and (piece := source.read(min(left, _COPY_BYTES))):
            left -= file.write(piece)
    return start


def _align(file: BinaryIO) -> int:
    """Where the next weight begins."""
    file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
    return file.tell()


def _point(tensor: TensorProto, offset: int, size_bytes: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS_NAME), ("offset", offset), ("length", size_bytes)):
        tensor.external_data.add(key=key, value=str(value))
