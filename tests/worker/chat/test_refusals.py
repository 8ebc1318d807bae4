"""What cannot be granted is refused with status 400 in OpenAI's words, and nothing else is ever raised."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.contract.errors import envelope_json
from jobs.errors import BadRequest, Refusal, TooLong
from tests.worker.chat.asking import CREATED, ask, body, said
from worker.chat import Chat
from worker.chat.template import Template

IMAGE = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"n": 1_000_000}, "n", "integer_above_max_value"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": float("nan")}, "temperature", "invalid_type"),
        ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "unsupported_value"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"frequency_penalty": 2.1}, "frequency_penalty", "decimal_above_max_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "decimal_above_max_value"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias", "object_above_max_properties"),
        ({"logit_bias": {"259": 1}}, "logit_bias", None),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "integer_below_min_value"),
        ({"stop_token_ids": [3, 259]}, "stop_token_ids", "invalid_value"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", None),
        ({"ignore_eos": 1}, "ignore_eos", "invalid_type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        ({"messages": said("x", role="bard")}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": said("a" * 600)}, "messages", "context_length_exceeded"),
        ({"model": None}, "model", "invalid_type"),
    ],
)
def test_a_fault_is_named_with_its_parameter(chat: Chat, asked: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        ask(chat, **asked)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)


def test_a_body_without_model_is_refused(chat: Chat) -> None:
    with pytest.raises(BadRequest, match="you must provide a model parameter"):
        chat.prompt({"messages": said("x")}, seed_text="s", created=CREATED)


def test_an_image_is_refused_where_it_stands(chat: Chat) -> None:
    with pytest.raises(BadRequest) as refused:
        ask(chat, messages=said(IMAGE))
    assert str(refused.value.param).startswith("messages[0].content")


def test_a_prompt_too_long_is_told_its_length(chat: Chat) -> None:
    template_tokens = len(ask(chat, messages=said("")).prompt.token_ids)
    with pytest.raises(TooLong, match=r"length is 512 tokens.* 517 tokens \(512 in the messages, 5 in the"):
        ask(chat, messages=said("a" * (512 - template_tokens)), max_tokens=5)


def test_json_object_without_the_word_json_is_refused(chat: Chat) -> None:
    with pytest.raises(BadRequest) as refused:
        ask(chat, response_format={"type": "json_object"})
    assert refused.value.param == "messages"
    assert refused.value.message == (
        "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
    )


@pytest.mark.parametrize("where", ["messages", "model", "stop", "user"])
def test_half_a_surrogate_pair_is_refused(chat: Chat, where: str) -> None:
    half = "\ud800"
    with pytest.raises(BadRequest):
        ask(chat, **{where: said(half) if where == "messages" else half})


def test_extreme_nesting_is_refused(chat: Chat) -> None:
    deep: object = "x"
    for _ in range(100_000):
        deep = [deep]
    for asked in ({"messages": deep}, {"tools": deep}, {"deep": deep}, {"metadata": {"a": deep}}):
        with pytest.raises(BadRequest):
            ask(chat, **asked)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.missing.more }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.append(1) }}",
        "{{ 1 // 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_that_cannot_render_the_messages_refuses_them(source: str) -> None:
    template = Template(source, bos_token="", eos_token="")
    with pytest.raises(BadRequest, match="chat template") as refused:
        template.render([{"role": "user", "content": "x"}], now=CREATED)
    assert refused.value.param == "messages"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [
        *("model", "messages", "max_tokens", "max_completion_tokens", "n", "temperature", "top_p", "top_k"),
        *("min_p", "stop", "response_format", "user", "seed", "service_tier", "stream", "metadata", "tools"),
        *("logit_bias", "stream_options", "unknown", "logprobs", "top_logprobs", "presence_penalty"),
        *("repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"),
    ]
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "developer", "tool"]), "content": values},
        optional={"name": values, "other": values},
    ),
    max_size=3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(names, values, max_size=4) | messages.map(lambda turns: {"messages": turns}))
def test_whatever_is_sent_is_granted_or_refused(chat: Chat, asked: dict[str, Any]) -> None:
    try:
        granted = chat.prompt(body() | asked, seed_text="s", created=CREATED)
    except Refusal as refusal:
        refused: Refusal | None = refusal
    else:
        refused = None
        assert len(granted.prompt.token_ids) + (granted.prompt.tokens_max or 0) <= 512
    assert refused is None or (refused.status == 400 and envelope_json(refused))
