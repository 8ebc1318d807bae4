"""A call is the whole answer, a JSON object without marks: Llama 3.1 to 3.3."""

import json
from collections.abc import Sequence
from typing import Final

from jobs.contract.tools import Function
from worker.chat.tools import calls, lark
from worker.chat.tools.calls import Call, Malformed

TAG: Final = "<|python_tag|>"


class Bare:
    """`{"name": ..., "parameters": {...}}`, sometimes after a tag; several stand with semicolons between them."""

    marks = (TAG,)
    openings = (TAG, "{")
    only_first = True

    def instructions(self, tools: Sequence[dict[str, object]]) -> str:
        listed = "\n\n".join(json.dumps(tool, indent=4, ensure_ascii=False) for tool in tools)
        return (
            "Given the following functions, please respond with a JSON for a function call with its proper arguments "
            'that best answers the given prompt. Respond in the format {"name": function name, "parameters": '
            f"dictionary of argument name and its value}}. Do not use variables.\n\n{listed}"
        )

    def grammar(self, functions: Sequence[Function], mark: lark.Mark, *, is_parallel: bool) -> str:  # noqa: ARG002
        """The family was not trained to call several at once."""
        return f"start: object\n{lark.objects(functions, key='parameters')}"

    def parse(self, text: str) -> tuple[str, list[Call]]:
        place = calls.after_blanks(text, 0)
        if not text.startswith(self.openings, place):
            return text, []
        found: list[Call] = []
        while place < len(text):
            value, place = calls.read_json(text, place + len(TAG) * text.startswith(TAG, place))
            found.append(calls.of_object(value))
            place = _after_semicolon(text, place)
        return "", found

    def spell(self, made: Sequence[Call]) -> str:
        return "; ".join(f'{{"name": "{call.name}", "parameters": {call.arguments}}}' for call in made)


def _after_semicolon(text: str, start: int) -> int:
    start = calls.after_blanks(text, start)
    if start == len(text):
        return start
    if text[start] != ";":
        raise Malformed("more than calls")
    return calls.after_blanks(text, start + 1)
