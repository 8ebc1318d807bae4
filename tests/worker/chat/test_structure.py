"""What a body asks its answer to look like is refused where it cannot be served, and checked when it is written."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.errors import BadRequest
from tests.worker.chat.asking import CREATED, ask, completion, said
from worker.chat import Asked, Chat
from worker.chat.structure import Missed
from worker.engine import Engine, EngineSettings, FinishReason, load
from worker.model import ModelFolder

KNOBS = EngineSettings(threads=2, context_tokens_max=512, slots_max=16)
PATIENCE_SECONDS = 120

CAT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "mood": {"enum": ["happy", "hungry", "asleep"]},
        "friends": {"type": "array", "items": {"$ref": "#/$defs/friend"}, "maxItems": 2},
    },
    "required": ["name", "age", "mood", "friends"],
    "additionalProperties": False,
    "$defs": {
        "friend": {
            "type": "object",
            "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}},
            "required": ["id"],
            "additionalProperties": False,
        }
    },
}


def schema(asked: dict[str, Any], *, strict: bool | None = None) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "cat", "schema": asked, "strict": strict}}
    }


def extension(**asked: object) -> dict[str, Any]:
    return {"structured_outputs": asked}


def answer(chat: Chat, asked: Asked, text: str, reason: FinishReason = FinishReason.STOP) -> str:
    ids = chat._tokenizer.encode_plain(text)
    body = json.loads(chat.answer(asked, [completion(ids, reason)], created_at=1).body)
    return str(body["choices"][0]["message"]["content"])


# ---- refused ----


@pytest.mark.parametrize(
    ("more", "message", "param", "code"),
    [
        (
            schema({"type": "array", "uniqueItems": True}),
            "Invalid schema for response_format 'cat': not permitted: 'uniqueItems'.",
            "response_format",
            "invalid_json_schema",
        ),
        (
            schema({"type": "object", "required": "name"}),
            "Invalid schema for response_format 'cat': ",
            "response_format",
            "invalid_json_schema",
        ),
        (
            schema({"type": "string", "examples": "a"}),
            'Invalid schema for response_format \'cat\': "a" is not of type "array"',
            "response_format",
            "invalid_json_schema",
        ),
        (
            schema({"type": "object", "properties": {}}, strict=True),
            "response_format 'cat': In context=(), 'additionalProperties' is required to be supplied and to be false.",
            "response_format",
            "invalid_json_schema",
        ),
        (
            extension(json={"if": {}}),
            "Invalid 'structured_outputs.json': not permitted: 'if'.",
            "structured_outputs.json",
            "invalid_json_schema",
        ),
        (extension(regex="(a"), "unclosed group.", "structured_outputs.regex", "invalid_value"),
        (extension(regex="(?=a)a"), "look-around", "structured_outputs.regex", "invalid_value"),
        (extension(grammar="start: word"), 'unknown name: "word"', "structured_outputs.grammar", "invalid_value"),
        (extension(grammar="start: %json {}"), "'%json' is not supp", "structured_outputs.grammar", "invalid_value"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    chat: Chat, more: dict[str, Any], message: str, param: str, code: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        ask(chat, **more)
    assert message in refused.value.message
    assert (refused.value.param, refused.value.code) == (param, code)


def test_strict_and_not_strict_schemas_are_served(chat: Chat) -> None:
    loose = {"type": "array", "items": {"type": "object", "properties": {"a": {}}}}
    for more in (schema(CAT, strict=True), schema(CAT), schema(loose, strict=False)):
        assert ask(chat, **more).prompt.watch is not None


def test_without_a_schema_any_object_will_do(chat: Chat) -> None:
    asked = ask(chat, response_format={"type": "json_schema", "json_schema": {"name": "any"}})
    assert answer(chat, asked, '{"a": [1]}') == '{"a": [1]}'
    with pytest.raises(Missed):
        answer(chat, asked, "[1]")


# ---- checked ----


@pytest.mark.parametrize(
    ("more", "good", "bad"),
    [
        (schema({"type": "integer", "maximum": 5}), "5", "6"),
        (schema({"type": "string", "format": "date"}), '"2026-01-31"', '"2026-02-31"'),
        (schema({"type": "string", "pattern": "^a+$"}), '"aa"', '"ab"'),
        (schema({}), "null", "nul"),
        (schema({}), "[0.5]", "[NaN]"),
        (schema({}), "1" * 4300, "1" * 4301),
        ({"response_format": {"type": "json_object"}}, "{}", "[]"),
        (extension(json={"type": "boolean"}), "true", '"true"'),
        (extension(regex=r"\d\.\d|x"), "1.5", "1,5"),
        (extension(regex="a|b"), "b", "bb"),
        (extension(choice=["yes", "no"]), "no", "noo"),
    ],
)
def test_a_finished_text_is_checked_by_another_than_wrote_it(
    chat: Chat, more: dict[str, Any], good: str, bad: str
) -> None:
    asked = ask(chat, messages=said("JSON"), **more)
    assert answer(chat, asked, good) == good
    with pytest.raises(Missed) as missed:
        answer(chat, asked, bad)
    assert (missed.value.status, missed.value.code) == (500, "invalid_structured_output")
    assert missed.value.param == next(iter(asked_param(more)))


def asked_param(more: dict[str, Any]) -> Iterator[str]:
    for name, value in more.items():
        yield f"{name}.{next(iter(value))}" if name == "structured_outputs" else name


def test_a_text_cut_by_its_length_is_not_checked(chat: Chat) -> None:
    assert answer(chat, ask(chat, **schema(CAT)), '{"name": "To', FinishReason.LENGTH) == '{"name": "To'


@pytest.mark.parametrize("stop", [{"stop": ","}, {"stop_token_ids": [5]}])
def test_a_text_cut_where_its_body_says_so_is_not_checked(chat: Chat, stop: dict[str, Any]) -> None:
    assert answer(chat, ask(chat, **schema(CAT), **stop), '{"name": "Tom"') == '{"name": "Tom"'


LOOK = {"tools": [{"type": "function", "function": {"name": "look"}}]}


def test_a_call_is_not_the_answer_that_was_asked_for(chat: Chat) -> None:
    ids = chat._tokenizer.encode_plain('<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>')
    asked = ask(chat, **schema(CAT), **LOOK)
    [choice] = json.loads(chat.answer(asked, [completion(ids)], created_at=1).body)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    with pytest.raises(Missed):
        answer(chat, asked, "I will have a look")


def test_an_answer_that_must_be_a_call_is_asked_for_nothing_else(chat: Chat) -> None:
    assert ask(chat, **schema(CAT), **LOOK, tool_choice="required").structure is None


# ---- asked again ----


def test_the_noise_of_another_try_is_decided_by_the_first(chat: Chat) -> None:
    first, same = (ask(chat, **schema(CAT), temperature=1) for _ in range(2))
    again, same_again = first.again(), same.again()
    assert again is not None
    assert same_again is not None
    assert again.prompt.sampling == same_again.prompt.sampling
    assert again.prompt.sampling.seed != first.prompt.sampling.seed
    assert again.prompt.sampling.temperature == 1
    assert again.answer_id == first.answer_id
    assert again.again() is None


def test_what_cannot_differ_is_not_asked_again(chat: Chat) -> None:
    assert ask(chat, **schema(CAT), temperature=0).again() is None


def test_what_someone_has_read_is_not_asked_again(chat: Chat) -> None:
    asked = chat.prompt(
        {"model": "tiny", "messages": said("Hi"), **schema(CAT)},
        seed_text="x",
        created=CREATED,
        publish=lambda choice, text, *, start: None,
    )
    assert asked.again() is None


# ---- a real model ----


@pytest.fixture(scope="module")
def engine(smollm2: ModelFolder) -> Iterator[Engine]:
    with load(smollm2, KNOBS) as engine:
        yield engine


@pytest.fixture(scope="module")
def real(smollm2: ModelFolder) -> Chat:
    return Chat(smollm2, context_tokens=512, fingerprint="fp")


@pytest.mark.parametrize(
    "more",
    [
        schema(CAT, strict=True),
        schema(
            {"type": "array", "items": {"type": "number", "minimum": -1, "maximum": 1}, "minItems": 2, "maxItems": 4}
        ),
        schema({"anyOf": [{"const": None}, {"type": "string", "format": "date"}]}),
        schema(
            {
                "$ref": "#/$defs/t",
                "$defs": {"t": {"properties": {"t": {"$ref": "#/$defs/t"}}, "additionalProperties": False}},
            }
        ),
        extension(regex=r"(19|20)\d\d-(0[1-9]|1[0-2])"),
        extension(choice=["a cat", "a dog", "a catfish"]),
        extension(grammar='start: WORD ", " WORD\nWORD: /[a-z]{2,6}/'),
    ],
)
def test_every_answer_of_a_real_model_that_ends_is_what_was_asked_for(
    real: Chat, engine: Engine, more: dict[str, Any]
) -> None:
    """`answer` raises where one is not."""
    asked = ask(real, messages=said("Tell me about Tom the cat, in JSON."), n=4, max_tokens=120, temperature=1, **more)
    completions = engine.submit(asked.prompt).result(PATIENCE_SECONDS)
    choices = json.loads(real.answer(asked, completions, created_at=1).body)["choices"]
    assert "stop" in {choice["finish_reason"] for choice in choices}


SOME_KEYS = {
    "type": "object",
    "properties": {
        "name_of_customer": {"type": "string", "maxLength": 12},
        "total_in_cents": {"type": "integer", "minimum": 0, "maximum": 9999},
        "was_delivered": {"type": "boolean"},
    },
    "required": ["name_of_customer", "total_in_cents", "was_delivered"],
    "additionalProperties": False,
}


def test_an_answer_is_the_same_whether_forced_tokens_are_asked_of_the_model_or_not(real: Chat, engine: Engine) -> None:
    """Who wants log-probabilities has each token asked for. Where eight or more are forced at once, or the first ones
    are, the last bits of what follows differ.
    """
    more = {**schema(SOME_KEYS, strict=True), "n": 4, "max_tokens": 90, "temperature": 1}
    texts = []
    for logprobs in (True, False):
        asked = ask(real, messages=said("An order of Tom's, in JSON."), logprobs=logprobs, **more)
        completions = engine.submit(asked.prompt).result(PATIENCE_SECONDS)
        texts.append([(one.token_ids, one.finish_reason, one.output_tokens) for one in completions])
    assert texts[0] == texts[1]
