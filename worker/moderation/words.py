"""A list of words and patterns that the operator wrote.

Matched by RE2, whose time is in proportion to the text whatever the pattern, and which takes thousands of words
in one pass. A pattern for Python's `re` could stop the process for ever: it holds the interpreter while it
backtracks, so no other thread could end it.
"""

import re
import unicodedata
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import re2

from jobs.settings import SettingsError
from worker.moderation.conversation import Conversation

DEFAULT_CATEGORY: Final = "custom_blocklists"  # as Azure calls what an operator's own list finds
MEMORY_BYTES: Final = 64 * 2**20  # of a category's automaton: 10,000 words fit well

_CATEGORY: Final = re.compile(r"\[([A-Za-z0-9][A-Za-z0-9_/-]*)\]")
# Unicode's letters, marks and digits: RE2's own \b knows ASCII only.
_BEGIN, _END = r"(?:^|[^\pL\pM\pN_])", r"(?:$|[^\pL\pM\pN_])"
# Signs that show nothing and would hide a word: soft hyphen, zero-width spaces and joiners, directions.
_INVISIBLE: Final = re.compile("[\u00ad\u034f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


class WordList:
    """Judges by one automaton a category."""

    def __init__(self, automata: dict[str, Any]) -> None:
        self._automata = automata

    def judge(self, said: Conversation) -> Future[frozenset[str]]:
        """At once, in the caller's thread: it takes microseconds."""
        text = _normal(said.text).encode()
        verdict: Future[frozenset[str]] = Future()
        verdict.set_result(frozenset(name for name, automaton in self._automata.items() if automaton.search(text)))
        return verdict


@dataclass(slots=True)
class _Category:
    words: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)

    def pattern(self) -> str:
        alternatives = [f"(?:{pattern})" for pattern in self.patterns]
        if self.words:
            alternatives.append(f"{_BEGIN}(?:{'|'.join(self.words)}){_END}")
        return "|".join(alternatives)


def read(path: Path) -> WordList:
    """The list in a file of UTF-8. SettingsError names the line that cannot be used.

    A line is a word or several, found as whole words in any case; or a `/pattern/` as RE2 writes them, found
    anywhere in any case; or `[category]` of the lines that follow; or blank; or a comment that begins with #.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The word list {path} cannot be read: {error}.") from error
    categories = _categories(path, lines)
    if not categories:
        raise SettingsError(f"The word list {path} has no words.")
    return WordList({name: _compiled(path, category.pattern()) for name, category in categories.items()})


def _categories(path: Path, lines: Iterable[str]) -> dict[str, _Category]:
    name, found = DEFAULT_CATEGORY, dict[str, _Category]()
    for line_no, line in enumerate(map(str.strip, lines), start=1):
        if heading := _CATEGORY.fullmatch(line):
            name = heading[1]
        elif line and not line.startswith("#"):
            _add(found.setdefault(name, _Category()), f"{path}, line {line_no}", line)
    return found


def _add(category: _Category, place: str, line: str) -> None:
    if len(line) > 2 and line.startswith("/") and line.endswith("/"):
        pattern = line[1:-1]
        if _compiled(place, pattern).search(b""):
            raise SettingsError(f"The pattern of {place}, finds nothing in particular: it would filter every text.")
        category.patterns.append(pattern)
        return
    words = [re2.escape(word) for word in _normal(line).split()]
    if not words:
        raise SettingsError(f"The word of {place}, has no sign that shows.")
    category.words.append(r"[\s\pZ]+".join(words))


def _compiled(place: Path | str, pattern: str) -> Any:
    options = re2.Options()
    options.case_sensitive = False
    options.never_capture = True
    options.log_errors = False
    options.max_mem = MEMORY_BYTES
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        fault = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        raise SettingsError(f"The pattern of {place}, cannot be used: {fault}.") from error
    finally:
        re2.purge()  # it would keep the last 128


def _normal(text: str) -> str:
    """Letters that look alike and mean the same, such as full-width ones, as one; without what shows nothing."""
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
