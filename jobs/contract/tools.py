"""The tools that a chat completion offers to the model, and the one it must use."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, Tag

from jobs.contract import limits
from jobs.contract.variants import Strict, by_type, text_or_object

Name = Annotated[
    str,
    StringConstraints(strict=True, min_length=1, max_length=limits.NAME_CHARACTERS_MAX, pattern="^[a-zA-Z0-9_-]+$"),
]


class Function(Strict):
    name: Name
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class FunctionTool(Strict):
    type: Literal["function"]
    function: Function


class TextFormat(Strict):
    type: Literal["text"]


class Grammar(Strict):
    definition: str
    syntax: Literal["lark", "regex"]


class GrammarFormat(Strict):
    type: Literal["grammar"]
    grammar: Grammar


class Custom(Strict):
    name: Name
    description: str | None = None
    format: (
        Annotated[
            Annotated[TextFormat, Tag("<text>")] | Annotated[GrammarFormat, Tag("<grammar>")],
            by_type("text", "grammar"),
        ]
        | None
    ) = None


class CustomTool(Strict):
    type: Literal["custom"]
    custom: Custom


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")] | Annotated[CustomTool, Tag("<custom>")],
    by_type("function", "custom"),
]


class Named(Strict):
    name: str


class FunctionChoice(Strict):
    type: Literal["function"]
    function: Named


class CustomChoice(Strict):
    type: Literal["custom"]
    custom: Named


NamedTool = Annotated[
    Annotated[FunctionChoice, Tag("<function>")] | Annotated[CustomChoice, Tag("<custom>")],
    by_type("function", "custom"),
]


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=limits.TOOLS_MAX)]

    @property
    def names(self) -> list[str]:
        return [tool.function.name if isinstance(tool, FunctionChoice) else tool.custom.name for tool in self.tools]


class AllowedToolsChoice(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")]
    | Annotated[
        Annotated[
            Annotated[FunctionChoice, Tag("<function>")]
            | Annotated[CustomChoice, Tag("<custom>")]
            | Annotated[AllowedToolsChoice, Tag("<allowed_tools>")],
            by_type("function", "custom", "allowed_tools"),
        ],
        Tag("<object>"),
    ],
    text_or_object("one of a string or object"),
]
Tools = Annotated[list[Tool], Field(max_length=limits.TOOLS_MAX)]


def absent(choice: ToolChoice, tools: list[FunctionTool | CustomTool]) -> tuple[str, str] | None:
    """Kind and name of the tool that a choice names and nobody offers; None where all is well."""
    offered = {tool.function.name if isinstance(tool, FunctionTool) else tool.custom.name for tool in tools}
    match choice:
        case FunctionChoice() if choice.function.name not in offered:
            return "function", choice.function.name
        case CustomChoice() if choice.custom.name not in offered:
            return "custom tool", choice.custom.name
        case AllowedToolsChoice():
            return next((("function", name) for name in choice.allowed_tools.names if name not in offered), None)
    return None
