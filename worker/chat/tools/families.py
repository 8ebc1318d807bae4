"""Which way of writing calls a model was trained on, told from its chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from jobs.contract.tools import Function
from worker.chat.tools.bare import Bare
from worker.chat.tools.calls import Call
from worker.chat.tools.headed import Headed
from worker.chat.tools.lark import Mark
from worker.chat.tools.listed import Listed
from worker.chat.tools.pythonic import Pythonic
from worker.chat.tools.tagged import Tagged


class Family(Protocol):
    """One way of writing calls."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What stands around calls; some models have control tokens for it, which are text to `parse`."""

    @property
    def openings(self) -> tuple[str, ...]:
        """With one of these a call begins."""

    @property
    def only_first(self) -> bool:
        """Whether a call is a call only where nothing was said before."""

    def instructions(self, tools: Sequence[dict[str, object]]) -> str:
        """What a system message says of the tools, for a template that does not."""

    def grammar(self, functions: Sequence[Function], mark: Mark, *, is_parallel: bool) -> str:
        """All texts that call one of the functions, or several; in Lark."""

    def parse(self, text: str) -> tuple[str, list[Call]]:
        """What was said beside the calls, and the calls; a text without any is said as it stands.

        Raises Malformed for a text that begins like a call and is none.
        """

    def spell(self, made: Sequence[Call]) -> str:
        """Calls as the model itself would write them."""


TAGGED: Final = Tagged()

# A template belongs to the first row of which it has a text.
_OF_TEMPLATES: Final[tuple[tuple[tuple[str, ...], Family | None], ...]] = (
    # Tags with something else than JSON between them: read by nobody here.
    (("<function=", "<arg_key>", "tool_calls_section", "tool▁calls▁begin", "<|channel|>"), None),
    (("[ARGS]",), Headed()),
    (("[TOOL_CALLS]",), Listed(("[TOOL_CALLS]",))),
    (("func_name1(", "<|python_start|>"), Pythonic()),
    (("<|/tool|>", "functools["), Listed(("<|tool_call|>", "functools"), "<|/tool_call|>", ("<|tool|>", "<|/tool|>"))),
    (("<tool_call>",), TAGGED),
    (("<|tool_call|>",), Listed(("<|tool_call|>", "<tool_call>"))),
    (("<|python_tag|>", '"parameters": dictionary'), Bare()),
)


@dataclass(frozen=True, slots=True)
class Spoken:
    """How one model is told of tools."""

    family: Family
    by_template: bool
    """Whether its template writes tools, calls and their results; else they are written as text."""
    by_short_id: bool = False
    """Whether its template takes ids of nine signs only."""


def of_template(source: str, *, knows_tools: bool) -> Spoken:
    """A model whose template knows no tools, or writes calls in a way that nobody here reads, is told of tools in
    the words of the most common family.
    """
    family = next((family for texts, family in _OF_TEMPLATES if any(text in source for text in texts)), None)
    by_short_id = "|length!=9" in source.replace(" ", "")
    return Spoken(family or TAGGED, by_template=knows_tools and family is not None, by_short_id=by_short_id)
