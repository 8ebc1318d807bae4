"""What the text of an answer must look like: OpenAI's `response_format`, and `structured_outputs` as vLLM names it."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from jobs.contract import limits, strict_schema
from jobs.contract.tools import Name, TextFormat
from jobs.contract.variants import Strict, by_type

Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=limits.GRAMMAR_CHARACTERS_MAX)]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchema(Strict):
    name: Name
    description: str | None = None
    schema_: Annotated[dict[str, object], Field(alias="schema", default_factory=lambda: {"type": "object"})]
    strict: bool | None = None

    @model_validator(mode="after")
    def _follows_the_rules_it_asks_for(self) -> Self:
        if self.strict and (fault := strict_schema.fault_of(self.schema_)):
            raise PydanticCustomError("not_strict", "not strict", {"name": self.name, "fault": fault})
        return self


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")]
    | Annotated[TextFormat, Tag("<text>")],
    by_type("json_object", "json_schema", "text"),
]


class StructuredOutputs(Strict):
    """Exactly one of them: a JSON schema, a pattern, a list of texts, a grammar in Lark."""

    json_: Annotated[dict[str, object] | None, Field(alias="json")] = None
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=limits.ANSWERS_TO_CHOOSE_MAX)] | None = None
    grammar: Text | None = None

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> Self:
        if sum(asked is not None for asked in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise PydanticCustomError("not_one_structure", "not one")
        return self
