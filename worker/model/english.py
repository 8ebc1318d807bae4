"""Plain English that every Python carries: the language reference behind `help()` (`pydoc_data`, PSF licence).

It is the same at every run of one version of Python, and nothing has to be fetched.
"""

import pydoc_data.topics
import re
import zlib
from typing import Final

_LETTERS_MIN: Final = 0.85
_CHARACTERS_MIN: Final = 100


def paragraphs() -> list[str]:
    """Paragraphs of prose, each once, in an order that mixes the subjects."""
    found: dict[str, None] = {}
    for _, text in sorted(pydoc_data.topics.topics.items()):
        for paragraph in re.split(r"\n\s*\n", text):
            line = " ".join(paragraph.split())
            if _is_prose(line):
                found[line] = None
    # The same order everywhere: that of a number which follows from the text.
    return sorted(found, key=lambda line: zlib.crc32(line.encode()))


def _is_prose(line: str) -> bool:
    if len(line) < _CHARACTERS_MIN or not line.endswith((".", ":")):
        return False
    return sum(sign.isalpha() or sign in " ,.'" for sign in line) >= _LETTERS_MIN * len(line)
