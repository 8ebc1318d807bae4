"""What llguidance says of a grammar that it cannot take or cannot go on with, in one line."""

import re
from typing import Final

from llguidance import LLMatcher

from worker.engine import NothingToSample

_CHARACTERS_MAX: Final = 300
_UNKNOWN_KEYWORDS: Final = re.compile(r"Unimplemented keys: \[(.*)\]")


def fault_of(matcher: LLMatcher) -> str | None:
    """Why there is nothing more to be had from a matcher; None while there is."""
    return _line(matcher.get_error()) if matcher.is_error() else None


def refuse_if_lost(matcher: LLMatcher) -> None:
    """NothingToSample: a matcher in error would allow the end of the answer, in the middle of it."""
    if (fault := fault_of(matcher)) is not None:
        raise NothingToSample(f"the grammar cannot go on: {fault.removesuffix('.')}")


def _line(problem: str) -> str:
    if (unknown := _UNKNOWN_KEYWORDS.match(problem)) is not None:
        return f"not permitted: {unknown[1].replace(chr(34), chr(39))}."
    lines = problem.splitlines()
    told = next((line for line in lines if line.startswith("error: ")), lines[0])
    return f"{told.removeprefix('error: ')[:_CHARACTERS_MAX].rstrip('.')}."
