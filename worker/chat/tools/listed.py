"""All calls in one JSON list, after a mark: Mistral, Phi-4-mini, Granite 3. A single one may stand without it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.contract.tools import Function
from worker.chat.tools import calls, lark
from worker.chat.tools.calls import Call, Malformed


@dataclass(frozen=True, slots=True)
class Listed:
    """A mark, a JSON list of calls, and where the family has one, a mark that closes it."""

    openings: tuple[str, ...]
    """The first is the one that is asked for; the others are understood too."""
    closing: str = ""
    tools: tuple[str, str] = ("", "")
    """What stands around the functions in a system message, in families whose template does not write them."""
    only_first = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.openings, self.closing) if self.closing else self.openings

    def instructions(self, tools: Sequence[dict[str, object]]) -> str:
        opening, closing = self.tools
        return opening + json.dumps([tool["function"] for tool in tools], ensure_ascii=False) + closing

    def grammar(self, functions: Sequence[Function], mark: lark.Mark, *, is_parallel: bool) -> str:
        more = ' (", " object)*' if is_parallel else ""
        closing = f" {mark(self.closing)}" if self.closing else ""
        start = f'start: {mark(self.openings[0])} "[" object{more} "]"{closing}'
        return f"{start}\n{lark.objects(functions, key='arguments')}"

    def parse(self, text: str) -> tuple[str, list[Call]]:
        places = [(start, opening) for opening in self.openings if (start := text.find(opening)) >= 0]
        if not places:
            return text, []
        start, opening = min(places)
        value, end = calls.read_json(text, start + len(opening))
        found = value if isinstance(value, list) else [value]
        if not found:
            raise Malformed("no calls")
        after = text[end:].lstrip(calls.BLANKS).removeprefix(self.closing)
        return calls.joined(text[:start], after), [calls.of_object(item) for item in found]

    def spell(self, made: Sequence[Call]) -> str:
        listed = ", ".join(f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in made)
        return f"{self.openings[0]}[{listed}]{self.closing}"
