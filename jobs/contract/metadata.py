"""Notes that a client hangs on an object: up to 16 short strings."""

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from jobs.contract import limits
from jobs.contract.variants import at_most


def _is_storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("Invalid 'metadata': a string must not contain the character U+0000.")
    return value


Key = Annotated[
    str,
    StringConstraints(strict=True, max_length=limits.METADATA_KEY_CHARACTERS_MAX),
    AfterValidator(_is_storable),
]
Value = Annotated[
    str,
    StringConstraints(strict=True, max_length=limits.METADATA_VALUE_CHARACTERS_MAX),
    AfterValidator(_is_storable),
]
Metadata = Annotated[
    dict[Key, Value],
    Field(max_length=limits.METADATA_PAIRS_MAX),
    at_most(limits.METADATA_PAIRS_MAX),
]
