"""What stands behind the question mark: integers read as strictly as those in a body."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Strict

DIGITS = re.compile(r"-?\d{1,18}", re.ASCII)


def digits(value: object) -> object:
    """The integer that a text spells; anything else as it is, to be refused by its type."""
    return int(value) if isinstance(value, str) and DIGITS.fullmatch(value) else value


Integer = Annotated[int, Strict(), BeforeValidator(digits)]
