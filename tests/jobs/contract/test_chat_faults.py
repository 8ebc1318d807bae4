"""What is wrong with the body of a chat completion, in OpenAI's words, with its code and param, one fault a call."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.contract import chat
from jobs.errors import BadRequest

TOOL = {"type": "function", "function": {"name": "look"}}
USER = {"role": "user", "content": "Hello"}
BODY: dict[str, Any] = {"model": "tiny", "messages": [USER]}
CLOSED: dict[str, Any] = {"type": "object", "additionalProperties": False}
OPENAIS_ORDER = [  # a wrong value for each parameter, in the order in which OpenAI checks them
    ("messages", []),
    ("functions", 1),
    ("tools", 1),
    ("parallel_tool_calls", 1),
    ("max_completion_tokens", 0),
    ("n", 0),
    ("temperature", 3),
    ("top_p", 2),
    ("presence_penalty", 3),
    ("frequency_penalty", 3),
    ("logprobs", 1),
    ("top_logprobs", 21),
    ("user", 1),
    ("seed", "1"),
    ("safety_identifier", "x" * 65),
    ("prompt_cache_key", 1),
    ("service_tier", "gold"),
    ("stream", 1),
    ("store", 1),
    ("metadata", 1),
    ("verbosity", "mute"),
]


def fault_of(body: dict[str, Any]) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        chat.read(orjson.loads(orjson.dumps(body)))
    return refused.value


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "cat", "strict": True, "schema": schema}}
    }


@pytest.mark.parametrize(
    ("change", "message", "code", "param"),
    [
        (
            {"messages": []},
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "empty_array",
            "messages",
        ),
        ({"colour": 1}, "Unknown parameter: 'colour'.", "unknown_parameter", "colour"),
        *(
            (
                {"logit_bias": {key: 1}},
                f"Invalid key in 'logit_bias': {key}. You should only be submitting non-negative integers.",
                None,
                "logit_bias",
            )
            for key in ("AI", "-1", "1.0", "", " 7", "07", "\u0663", "9" * 10, "{}")
        ),
        (
            {"min_tokens": 6, "max_tokens": 9, "max_completion_tokens": 5},
            "Invalid 'min_tokens': 6 is more than the longest answer asked for, which is 5 tokens.",
            None,
            "min_tokens",
        ),
        (
            {"temprature": 1},
            "Unknown parameter: 'temprature'. Did you mean 'temperature'?",
            "unknown_parameter",
            "temprature",
        ),
        ({"n": "1"}, "Invalid type for 'n': expected an integer, but got a string instead.", "invalid_type", "n"),
        ({"n": 1.0}, "Invalid type for 'n': expected an integer, but got a decimal instead.", "invalid_type", "n"),
        ({"n": True}, "Invalid type for 'n': expected an integer, but got a boolean instead.", "invalid_type", "n"),
        (
            {"temperature": True},
            "Invalid type for 'temperature': expected a decimal, but got a boolean instead.",
            "invalid_type",
            "temperature",
        ),
        (
            {"messages": "Hello"},
            "Invalid type for 'messages': expected an array of objects, but got a string instead.",
            "invalid_type",
            "messages",
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            (
                "Invalid type for 'messages[0].content': expected one of a string or array of objects, "
                "but got an integer instead."
            ),
            "invalid_type",
            "messages[0].content",
        ),
        (
            {"n": 0},
            "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead.",
            "integer_below_min_value",
            "n",
        ),
        (
            {"temperature": 200},
            "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 200 instead.",
            "decimal_above_max_value",
            "temperature",
        ),
        (
            {"top_p": -0.5},
            "Invalid 'top_p': decimal below minimum value. Expected a value >= 0, but got -0.5 instead.",
            "decimal_below_min_value",
            "top_p",
        ),
        (
            {"tools": [TOOL] * 132},
            (
                "Invalid 'tools': array too long. Expected an array with maximum length 128, "
                "but got an array with length 132 instead."
            ),
            "array_above_max_length",
            "tools",
        ),
        (
            {"metadata": dict.fromkeys(map(str, range(17)), "")},
            (
                "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, "
                "but got an object with 17 properties instead."
            ),
            "object_above_max_properties",
            "metadata",
        ),
        (
            {"metadata": {"k" * 65: ""}},
            (
                "Invalid 'metadata': property name too long. Expected a property name with maximum length 64, "
                "but got a property name with length 65 instead."
            ),
            "property_name_above_max_length",
            "metadata",
        ),
        (
            {"metadata": {"tags": []}},
            "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
            "invalid_type",
            "metadata.tags",
        ),
        (
            {"verbosity": "bogus"},
            "Invalid value: 'bogus'. Supported values are: 'low', 'medium', and 'high'.",
            "invalid_value",
            "verbosity",
        ),
        (
            {"messages": [{"role": "bard", "content": "x"}]},
            (
                "Invalid value: 'bard'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool', "
                "and 'developer'."
            ),
            "invalid_value",
            "messages[0].role",
        ),
        (
            {"response_format": {"type": "yaml"}},
            "Invalid value: 'yaml'. Supported values are: 'json_object', 'json_schema', and 'text'.",
            "invalid_value",
            "response_format.type",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "Missing required parameter: 'response_format.json_schema.name'.",
            "missing_required_parameter",
            "response_format.json_schema.name",
        ),
        (
            {"messages": [{"role": "function", "content": "sunny"}]},
            "Missing required parameter: 'messages[0].name'.",
            "missing_required_parameter",
            "messages[0].name",
        ),
        (
            strict({"type": "array"}),
            """Invalid schema for response_format 'cat': schema must be a JSON Schema of 'type: "object"', got 'type: "array"'.""",  # noqa: E501
            "invalid_json_schema",
            "response_format",
        ),
        (
            strict(
                {**CLOSED, "properties": {"a": {"anyOf": [{"type": "null"}, {"type": "object"}]}}, "required": ["a"]}
            ),
            (
                "Invalid schema for response_format 'cat': In context=('properties', 'a', 'anyOf', '1'), "
                "'additionalProperties' is required to be supplied and to be false."
            ),
            "invalid_json_schema",
            "response_format",
        ),
        (
            strict({**CLOSED, "$defs": {"x": {**CLOSED, "properties": {"a": {}, "b": {}}, "required": ["a"]}}}),
            (
                "Invalid schema for response_format 'cat': In context=('$defs', 'x'), 'required' is required to be "
                "supplied and to be an array including every key in properties. Missing 'b'."
            ),
            "invalid_json_schema",
            "response_format",
        ),
        (
            {"structured_outputs": {}},
            "Invalid value for 'structured_outputs': expected exactly one of 'json', 'regex', 'choice' and 'grammar'.",
            None,
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "Invalid value for 'structured_outputs': expected exactly one of 'json', 'regex', 'choice' and 'grammar'.",
            None,
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            (
                "Invalid value for 'structured_outputs': 'structured_outputs' is not allowed with 'response_format' of "
                "type 'json_object'."
            ),
            None,
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"choice": ["a", ""]}},
            (
                "Invalid 'structured_outputs.choice[1]': empty string. Expected a string with minimum length 1, but "
                "got an empty string instead."
            ),
            "empty_string",
            "structured_outputs.choice[1]",
        ),
        (
            {"structured_outputs": {"choice": ["a"] * 1001}},
            (
                "Invalid 'structured_outputs.choice': array too long. Expected an array with maximum length 1000, but "
                "got an array with length 1001 instead."
            ),
            "array_above_max_length",
            "structured_outputs.choice",
        ),
        (
            {"top_logprobs": 2},
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            None,
            "top_logprobs",
        ),
        (
            {"tool_choice": "auto"},
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            None,
            "tool_choice",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "leap"}}},
            "Invalid value for 'tool_choice': no function named 'leap' was specified in the 'tools' parameter.",
            None,
            "tool_choice",
        ),
        (
            {"messages": [USER, {"role": "user", "content": None}]},
            "Invalid value for 'content': expected a string, got null.",
            None,
            "messages.[1].content",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "Missing required parameter: 'messages[0].tool_call_id'.",
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
    ],
)
def test_a_fault_is_told_in_openais_words(
    change: dict[str, Any], message: str, code: str | None, param: str | None
) -> None:
    fault = fault_of({**BODY, **change})
    assert (fault.message, fault.code, fault.param) == (message, code, param)


def test_what_is_missing_comes_first_then_unknown_keys_then_the_rest() -> None:
    fault = fault_of({"colour": 1, "n": 0})
    assert (fault.message, fault.code, fault.param) == ("you must provide a model parameter", None, None)
    assert fault_of({"model": "tiny", "colour": 1, "n": 0}).message == "Missing required parameter: 'messages'."
    assert fault_of({**BODY, "colour": 1, "n": 0}).param == "colour"
    assert fault_of({**BODY, "messages": [{"role": "user", "colour": 1}], "n": 0}).param == "messages[0].colour"


@given(st.sets(st.sampled_from(range(len(OPENAIS_ORDER))), min_size=1), st.randoms())
def test_of_several_faults_the_one_that_openai_checks_first_is_told(chosen: set[int], random: Any) -> None:
    wrong = [OPENAIS_ORDER[place] for place in chosen]
    random.shuffle(wrong)  # the order of the keys in the body decides nothing
    assert fault_of({**BODY, **dict(wrong)}).param == OPENAIS_ORDER[min(chosen)][0]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"verbosity": "low"}, "verbosity"),
        ({"modalities": ["text", "audio"]}, "modalities"),
    ],
)
def test_what_is_known_and_not_served_is_refused_by_name(change: dict[str, Any], param: str) -> None:
    fault = fault_of({**BODY, **change})
    assert (fault.code, fault.param) == ("unsupported_parameter", param)
    assert fault.message == f"Unsupported parameter: '{param}' is not supported with this model."


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 1, "top_p": 0, "stop": ["a", "b"], "seed": -1},
        {"frequency_penalty": 2, "logprobs": True, "tools": [], "tool_choice": "none", "modalities": ["text"]},
        {"logit_bias": {"0": -100, "50256": 0.5}, "logprobs": True, "top_logprobs": 20, "presence_penalty": -2},
        {"repetition_penalty": 1.1, "min_tokens": 3, "max_tokens": 3, "ignore_eos": True, "stop_token_ids": [2, 2]},
        {"n": None, "stream": None, "metadata": None, "response_format": None, "user": None},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}], "name": "a"}]},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    ],
)
def test_what_asks_for_nothing_special_is_taken(change: dict[str, Any]) -> None:
    chat.read({**BODY, **change})


MANY = 5_000
VERY_FAULTY: dict[str, dict[str, Any]] = {
    "unknown keys": {f"key {n}": 1 for n in range(MANY)},
    "unknown keys in a message": {"messages": [{**USER, **{f"key {n}": 1 for n in range(MANY)}}]},
    "messages": {"messages": [{"role": "user", "content": [1]}] * 2_000},
    "parts": {"messages": [{"role": "user", "content": [1] * MANY}]},
    "calls": {"messages": [{"role": "assistant", "tool_calls": [1] * MANY}]},
    "annotations": {"messages": [{**USER, "annotations": [1] * MANY}]},
    "biases": {"logit_bias": {str(n): "x" for n in range(MANY)}},
    "metadata": {"metadata": {str(n): 1 for n in range(MANY)}},
    "modalities": {"modalities": [1] * MANY},
    "predicted parts": {"prediction": {"type": "content", "content": [1] * MANY}},
    "stops": {"stop": [1] * MANY, "stop_token_ids": ["x"] * MANY},
    "tools": {"tools": [1] * MANY, "functions": [1] * MANY},
}


@pytest.mark.parametrize("kind", VERY_FAULTY)
def test_a_body_of_very_many_faults_does_not_cost_a_second_and_a_gigabyte(kind: str) -> None:
    with pytest.raises(ValidationError) as refused:
        chat.ChatCompletion.model_validate(BODY | VERY_FAULTY[kind])
    assert refused.value.error_count() < 500


def test_of_very_many_unknown_keys_the_first_is_told() -> None:
    with pytest.raises(BadRequest) as refused:
        chat.read({f"key {n}": 1 for n in range(200)} | BODY)
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", "key 0")
    with pytest.raises(BadRequest, match="you must provide a model"):
        chat.read({f"key {n}": 1 for n in range(200)})


def test_an_unknown_key_without_end_is_compared_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.contract.errors.difflib.get_close_matches", lambda word, *_, **__: [word[:0]])
    with pytest.raises(BadRequest, match="Did you mean"):
        chat.read(BODY | {"temprature": 1})
    with pytest.raises(BadRequest) as refused:
        chat.read(BODY | {"temprature" * 1000: 1})
    assert "Did you mean" not in refused.value.message
