"""What a part of the benchmark is told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.roofline import Rates


def _nobody(_found: dict[str, Any]) -> None:
    """Hears what a part has found so far."""


@dataclass(frozen=True, slots=True)
class Given:
    """`device` is cuda or cpu; `is_tiny` asks for a trial of the benchmark itself, in seconds. `earlier` has what other
    parts have found; `tell` keeps what this one has found so far, whatever becomes of the rest.
    """

    device: str
    shape: str
    is_tiny: bool
    seconds: float
    earlier: dict[str, Any] = field(default_factory=dict)
    tell: Callable[[dict[str, Any]], None] = _nobody

    @property
    def rates(self) -> Rates | None:
        """None where the part `device` has not been measured."""
        found = self.earlier.get("device", {}).get("found")
        return Rates(found["operations"], found["bytes"]) if found else None
