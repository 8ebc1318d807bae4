"""The named tensors of a model's files: checked when they are asked for, read when they are needed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from worker.model.errors import UnreadableWeights, UnsupportedModel
from worker.model.weights import Tensor


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Tensors:
    """All tensors of one model; `origin` says in errors where they are from."""

    origin: str
    stored: Mapping[str, StoredTensor]
    used: set[str] = field(default_factory=set)

    def take(self, name: str, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        """A function that reads a tensor. Raises UnreadableWeights now if it is missing or has another shape."""
        if name not in self.stored:
            raise UnreadableWeights(f"{self.origin} has no tensor '{name}'")
        tensor = self.stored[name]
        if tensor.shape != shape:
            raise UnreadableWeights(
                f"tensor '{name}' of {self.origin} has the shape {tensor.shape}, where {shape} was expected"
            )
        self.used.add(name)
        return tensor.read

    def ignore(self, is_needless: Callable[[str], bool]) -> None:
        """Leave out tensors that change no answer."""
        self.used.update(filter(is_needless, self.stored))

    def refuse_unused(self) -> None:
        """A tensor that we do not know would be left out of every answer."""
        if unused := sorted(self.stored.keys() - self.used):
            raise UnsupportedModel(
                f"{self.origin} has {len(unused)} tensors that are not understood, such as '{unused[0]}'"
            )
