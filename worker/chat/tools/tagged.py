"""Each call between tags of its own: Hermes, Qwen 2.5 and 3, Granite 4, SmolLM3."""

import json
from collections.abc import Sequence
from typing import Final

from jobs.contract.tools import Function
from worker.chat.tools import calls, lark
from worker.chat.tools.calls import Call, Malformed

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"

_INSTRUCTIONS: Final = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class Tagged:
    """`<tool_call>` and a JSON object and `</tool_call>`, any number of times."""

    marks = (OPEN, CLOSE)
    openings = (OPEN,)
    only_first = False

    def instructions(self, tools: Sequence[dict[str, object]]) -> str:
        """The words that Hermes and Qwen were trained on."""
        return _INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))

    def grammar(self, functions: Sequence[Function], mark: lark.Mark, *, is_parallel: bool) -> str:
        more = ' ("\\n" call)*' if is_parallel else ""
        call = f'call: {mark(OPEN)} "\\n" object "\\n" {mark(CLOSE)}'
        return "\n".join([f"start: call{more}", call, lark.objects(functions, key="arguments")])

    def parse(self, text: str) -> tuple[str, list[Call]]:
        said, found, place = "", list[Call](), 0
        while (start := text.find(OPEN, place)) >= 0:
            said = calls.joined(said, text[place:start]) if found else text[:start]
            value, place = calls.read_json(text, start + len(OPEN))
            found.append(calls.of_object(value))
            place = _after_close(text, place)
        return calls.joined(said, text[place:]) if found else text, found

    def spell(self, made: Sequence[Call]) -> str:
        return "\n".join(f'{OPEN}\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n{CLOSE}' for call in made)


def _after_close(text: str, start: int) -> int:
    """The last tag may be left out where the text ends: some models take it for the end itself."""
    start = calls.after_blanks(text, start)
    if start < len(text) and not text.startswith(CLOSE, start):
        raise Malformed("no closing tag")
    return start + len(CLOSE)
