"""The body of an answer is what OpenAI's own client reads, and always valid UTF-8."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from tests import tiny_model
from tests.worker.chat.asking import ask, completion
from worker.chat import Chat, Usage
from worker.engine import FinishReason

token_ids = st.lists(st.integers(0, tiny_model.SPEC.vocabulary - 1), max_size=40)


def answer_body(chat: Chat, *choices: list[int], **more: object) -> dict[str, Any]:
    answer = chat.answer(
        ask(chat, **more), [completion(ids, FinishReason.LENGTH) for ids in choices], created_at=1_700_000_000
    )
    parsed: dict[str, Any] = json.loads(answer.body)
    return parsed


def test_an_answer_has_all_the_keys_of_openai(chat: Chat) -> None:
    body = answer_body(chat, chat._tokenizer.encode_plain("Hello é"))
    assert body == {
        "id": body["id"],
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello é", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 8,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
        "system_fingerprint": "fp_tiny",
    }
    assert body["id"].startswith("chatcmpl-")


def test_openais_client_reads_an_answer_strictly(chat: Chat) -> None:
    asked = ask(chat, n=2)
    answer = chat.answer(asked, [completion([10, 11]), completion([])], created_at=1)
    read = ChatCompletion.model_validate_json(answer.body, strict=True)
    assert not read.model_extra
    assert [choice.index for choice in read.choices] == [0, 1]
    assert read.choices[1].message.content == ""


def test_the_prompt_counts_once_and_the_completions_all(chat: Chat) -> None:
    choices = [completion([10, 11], output_tokens=3), completion([10])]
    answer = chat.answer(ask(chat, n=2), choices, created_at=1)
    assert answer.usage == Usage(prompt_tokens=7, cached_tokens=3, completion_tokens=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(token_ids)
def test_any_tokens_make_valid_utf8(chat: Chat, ids: list[int]) -> None:
    [choice] = answer_body(chat, ids)["choices"]
    assert choice["message"]["content"] == chat._tokenizer.decode(ids)


def test_a_zero_byte_of_a_model_is_escaped(chat: Chat) -> None:
    ids = chat._tokenizer.encode_plain("a\0b")
    answer = chat.answer(ask(chat), [completion(ids)], created_at=1)
    assert "\0" not in answer.body
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "a\0b"


def test_the_model_is_called_as_the_client_called_it(chat: Chat) -> None:
    assert answer_body(chat, [], model="my-alias")["model"] == "my-alias"
