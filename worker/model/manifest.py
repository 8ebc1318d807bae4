"""The page in a model folder that says what the other files are; it is written last."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from worker.model.precision import Precision
from worker.model.spec import ModelSpec

FORMAT: Final = 2
"""Goes up when folders written before can no longer be read, or must be written anew."""

MANIFEST_NAME: Final = "manifest.json"


class OtherFormat(Exception):
    """A folder that another version wrote; the argument is what a user types to add the model again."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a model folder, as it was written."""

    name: str
    size_bytes: int
    sha256: str  # of the whole file
    sample_sha256: str  # of some blocks of it: see folder._sample_digest


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model folder holds and where it came from."""

    name: str
    source: str  # what was fetched: the same words for the same weights
    reference: str  # what a user types to add it again
    precision: Precision
    created_at: str  # ISO 8601, UTC
    spec: ModelSpec
    bos_token: str
    eos_token: str
    files: tuple[StoredFile, ...]
    is_ready_made: bool = False  # an ONNX graph that others made

    @property
    def fingerprint(self) -> str:
        """Equal for two folders that give the same answers, whatever they are called."""
        facts = [FORMAT, self.precision, *sorted((file.name, file.sha256) for file in self.files)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def as_json(self) -> str:
        values = {"format": FORMAT, "fingerprint": self.fingerprint} | asdict(self)
        return json.dumps(values, ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises OtherFormat for a manifest of another version, else ValueError, KeyError or TypeError."""
        values: dict[str, Any] = json.loads(text)
        if values["format"] != FORMAT:
            raise OtherFormat(str(values["reference"]))
        return cls(
            name=values["name"],
            source=values["source"],
            reference=values["reference"],
            precision=Precision(values["precision"]),
            created_at=values["created_at"],
            spec=ModelSpec.from_json(values["spec"]),
            bos_token=values["bos_token"],
            eos_token=values["eos_token"],
            files=tuple(StoredFile(**file) for file in values["files"]),
            is_ready_made=bool(values.get("is_ready_made")),
        )
