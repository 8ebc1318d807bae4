"""Each call after its name: Mistral's newer models."""

import json
from collections.abc import Sequence
from typing import Final

from jobs.contract.tools import Function
from worker.chat.tools import calls, lark
from worker.chat.tools.calls import Call, Malformed

OPEN: Final = "[TOOL_CALLS]"
ARGUMENTS: Final = "[ARGS]"
CALL_ID: Final = "[CALL_ID]"


class Headed:
    """`[TOOL_CALLS]name[ARGS]{...}`, any number of times; some models write an id of theirs before the arguments."""

    marks = (OPEN, ARGUMENTS, CALL_ID)
    openings = (OPEN,)
    only_first = False

    def instructions(self, tools: Sequence[dict[str, object]]) -> str:
        return f"[AVAILABLE_TOOLS]{json.dumps(tools, ensure_ascii=False)}[/AVAILABLE_TOOLS]"

    def grammar(self, functions: Sequence[Function], mark: lark.Mark, *, is_parallel: bool) -> str:
        names = " | ".join(f"call{place}" for place in range(len(functions)))
        rules = [f"start: call{'+' if is_parallel else ''}", f"call: {names}"]
        for place, function in enumerate(functions):
            arguments = lark.json_of(lark.schema_of(function), function)
            head = f"{mark(OPEN)} {lark.literal(function.name)} {mark(ARGUMENTS)}"
            rules += [f"call{place}: {head} arguments{place}", f"arguments{place}: {arguments}"]
        return "\n".join(rules)

    def parse(self, text: str) -> tuple[str, list[Call]]:
        said, *written = text.split(OPEN)
        found, after = list[Call](), ""
        for place, one in enumerate(written):
            head, mark, arguments = one.partition(ARGUMENTS)
            if not mark:
                raise Malformed("no arguments")
            value, end = calls.read_json(arguments, 0)
            if place < len(written) - 1 and arguments[end:].strip(calls.BLANKS):
                raise Malformed("more than calls")
            after = arguments[end:]
            name = head.partition(CALL_ID)[0].strip(calls.BLANKS)
            found.append(calls.of_object({"name": name, "arguments": value}))
        return (calls.joined(said, after) if found else text), found

    def spell(self, made: Sequence[Call]) -> str:
        return "".join(f"{OPEN}{call.name}{ARGUMENTS}{call.arguments}" for call in made)
