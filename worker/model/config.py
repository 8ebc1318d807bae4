"""A model's settings as Hugging Face's config.json has them, read with errors that name what is wrong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from worker.model.errors import UnreadableWeights

_FILE_BYTES_MAX: Final = 64 << 20
_NUMBER_MAX: Final = 1e30


@dataclass(frozen=True, slots=True)
class Config:
    """Named values; one that is null counts as absent. `origin` says in errors where they are from."""

    origin: str
    values: Mapping[str, Any]

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number above zero."""
        found = self._told(key, default)
        if not self.has(key):
            return int(found)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found < 2**31:
            raise self._wrong(key, "a whole number above zero")
        return found

    def number(self, key: str, default: float | None = None) -> float:
        """A number above zero."""
        found = self._told(key, default)
        if not self.has(key):
            return float(found)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < _NUMBER_MAX:
            raise self._wrong(key, "a number above zero")
        return float(found)

    def text(self, key: str, default: str | None = None) -> str:
        found = self._told(key, default)
        if not isinstance(found, str):
            raise self._wrong(key, "a text")
        return found

    def flag(self, key: str) -> bool:
        """True or false; false where it is absent."""
        found = self._told(key, default=False)
        if not isinstance(found, bool):
            raise self._wrong(key, "true or false")
        return found

    def each(self, key: str) -> list[Any]:
        """A list; empty where it is absent."""
        found = self._told(key, [])
        if not isinstance(found, list):
            raise self._wrong(key, "a list")
        return found

    def numbers(self, key: str) -> list[float]:
        """A list of numbers."""
        try:
            return [float(found) for found in self.each(key)]
        except (TypeError, ValueError, OverflowError):
            raise self._wrong(key, "a list of numbers") from None

    def ids(self, key: str) -> tuple[int, ...]:
        """A token id, or a list of them; none where it is absent."""
        found = self._told(key, [])
        listed = found if isinstance(found, list) else [found]
        if not all(isinstance(index, int) and 0 <= index < 2**31 for index in listed):
            raise self._wrong(key, "a token id, or a list of them")
        return tuple(listed)

    def part(self, key: str) -> "Config":
        """The values inside a value; none where it is absent."""
        found = self._told(key, {})
        if not isinstance(found, dict):
            raise self._wrong(key, "an object")
        return Config(self.origin, found)

    def over(self, defaults: Mapping[str, Any]) -> "Config":
        """The same with values for what is absent."""
        told = {key: value for key, value in self.values.items() if value is not None}
        return Config(self.origin, {**defaults, **told})

    def _told(self, key: str, default: object) -> Any:
        found = self.values.get(key)
        if found is None and default is None:
            raise UnreadableWeights(f"{self.origin} does not say '{key}'")
        return default if found is None else found

    def _wrong(self, key: str, expected: str) -> UnreadableWeights:
        return UnreadableWeights(
            f"{self.origin} has {key} = {str(self.values[key])[:80]}, where {expected} was expected"
        )


def read(path: Path) -> Config:
    """Read a JSON object. Raises UnreadableWeights if the file is none, or larger than any honest one."""
    origin = f"{path.parent.name}/{path.name}"
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise UnreadableWeights(f"{origin} is larger than {_FILE_BYTES_MAX:,} bytes")
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise UnreadableWeights(f"{origin} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableWeights(f"{origin} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise UnreadableWeights(f"{origin} is not a JSON object")
    return Config(origin, values)


def read_if_there(path: Path) -> Config:
    """As `read`, and without values where there is no such file."""
    return read(path) if path.exists() else Config(f"{path.parent.name}/{path.name}", {})
