"""The named tensors of a model's files: checked when they are asked for, read when they are needed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.weights import StoredTensor

BEGINNING_BYTES: Final = 40
"""Of a file, by which a pointer is known."""
_POINTER: Final = b"version https://git-lfs.github.com/spec"


@dataclass(frozen=True, slots=True)
class Tensors:
    """All tensors of one model; `origin` says in errors where they are from."""

    origin: str
    stored: Mapping[str, StoredTensor]
    used: set[str] = field(default_factory=set)

    def take(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        """The tensor of a name. Raises UnreadableWeights if it is missing or has another shape."""
        if name not in self.stored:
            raise UnreadableWeights(f"{self.origin} has no tensor '{name}'")
        tensor = self.stored[name]
        if tensor.shape != shape:
            raise UnreadableWeights(
                f"tensor '{name}' of {self.origin} has the shape {tensor.shape}, where {shape} was expected"
            )
        self.used.add(name)
        return tensor

    def ignore(self, is_needless: Callable[[str], bool]) -> None:
        """Leave out tensors that change no answer."""
        self.used.update(filter(is_needless, self.stored))

    def refuse_unused(self) -> None:
        """A tensor that we do not know would be left out of every answer."""
        if unused := sorted(self.stored.keys() - self.used):
            raise UnsupportedModel(
                f"{self.origin} has {len(unused)} tensors that are not understood, such as '{unused[0]}'"
            )


def refuse_pointer(beginning: bytes, path: Path) -> None:
    """UnreadableWeights for what Git leaves in the place of a large file that was not fetched."""
    if beginning.startswith(_POINTER):
        raise UnreadableWeights(f"{path} only points to the file itself; fetch that with: git lfs pull")


def piece(path: Path, element: np.dtype[Any], count: int, offset: int) -> NDArray[Any]:
    """As many numbers of a file. Raises UnreadableWeights if it has changed since its beginning was read."""
    try:
        numbers = np.fromfile(path, element, count, offset=offset)
    except OSError as error:
        raise UnreadableWeights(f"{path} cannot be read: {error.strerror or error}") from error
    if len(numbers) < count:
        raise UnreadableWeights(f"{path} has become shorter while it was read")
    return numbers
