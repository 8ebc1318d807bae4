"""What a body asks of its tokens reaches the model, and what the model thought of them comes back."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from jobs.errors import BadRequest
from tests.worker.chat.asking import ask
from worker.chat import Chat
from worker.engine import Completion, Engine, EngineSettings, FinishReason, TokenLogprob, load
from worker.model import ModelFolder

KNOBS = EngineSettings(threads=1, context_tokens_max=512, slots_max=8)
PATIENCE_SECONDS = 60
END = 2
"""The id of <|im_end|>, after which the tiny model stops."""


@pytest.fixture(scope="module")
def engine(tiny: ModelFolder) -> Iterator[Engine]:
    with load(tiny, KNOBS) as engine:
        yield engine


def body_of(chat: Chat, engine: Engine, **more: object) -> dict[str, Any]:
    asked = ask(chat, **more)
    answer = chat.answer(asked, engine.submit(asked.prompt).result(PATIENCE_SECONDS), created_at=1)
    ChatCompletion.model_validate_json(answer.body, strict=True)
    parsed: dict[str, Any] = json.loads(answer.body)
    return parsed


def choice_of(chat: Chat, engine: Engine, **more: object) -> dict[str, Any]:
    [choice] = body_of(chat, engine, **more)["choices"]
    return dict(choice)


def text_of(chat: Chat, engine: Engine, **more: object) -> str:
    return str(choice_of(chat, engine, **more)["message"]["content"])


def id_of(chat: Chat, text: str) -> int:
    [index] = chat._tokenizer.encode_plain(text)
    return index


def written(logprobs: dict[str, Any]) -> bytes:
    return b"".join(bytes(entry["bytes"] or ()) for entry in logprobs["content"])


def as_completion(ids: list[int], logprobs: list[TokenLogprob]) -> Completion:
    return Completion(tuple(ids), FinishReason.LENGTH, 7, cached_tokens=0, output_tokens=9, logprobs=tuple(logprobs))


# ---- bias and penalties ----


def test_a_bias_of_a_hundred_writes_nothing_else_and_of_minus_a_hundred_never(chat: Chat, engine: Engine) -> None:
    letter = str(id_of(chat, "x"))
    assert text_of(chat, engine, logit_bias={letter: 100}, max_tokens=8) == "x" * 8
    choices = body_of(chat, engine, logit_bias={letter: -100}, max_tokens=60, n=8, temperature=2)["choices"]
    assert not any("x" in choice["message"]["content"] for choice in choices)


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 3}])
def test_a_penalty_makes_a_text_richer(chat: Chat, engine: Engine, penalty: dict[str, Any]) -> None:
    def different(**more: object) -> int:
        asked = {"temperature": 0.6, "max_tokens": 100, "logprobs": True, "ignore_eos": True, **more}
        return len({entry["token"] for entry in choice_of(chat, engine, **asked)["logprobs"]["content"]})

    assert different(**penalty) > different() + 5


def test_a_token_that_the_model_does_not_have_cannot_be_biased(chat: Chat) -> None:
    with pytest.raises(BadRequest) as refused:
        ask(chat, logit_bias={"258": 1, "300": 1})
    assert refused.value.message == "Invalid key in 'logit_bias': 300. Maximum value is 258."
    assert (refused.value.param, refused.value.code) == ("logit_bias", None)
    assert ask(chat, logit_bias={"258": 1}).prompt.sampling.logit_bias == ((258, 1.0),)


# ---- the end ----


def test_the_end_is_held_back_until_min_tokens_are_written(chat: Chat, engine: Engine) -> None:
    asked = {"logit_bias": {str(END): 100}, "max_tokens": 20}
    plain, held = body_of(chat, engine, **asked), body_of(chat, engine, **asked, min_tokens=5)
    assert plain["usage"]["completion_tokens"] == 1
    assert held["usage"]["completion_tokens"] == 6
    assert held["choices"][0]["finish_reason"] == "stop"


def test_an_end_that_is_ignored_is_a_token_like_others(chat: Chat, engine: Engine) -> None:
    asked = {"logit_bias": {str(END): 100}, "max_tokens": 6, "ignore_eos": True, "logprobs": True}
    choice = choice_of(chat, engine, **asked)
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    assert [(entry["token"], entry["bytes"]) for entry in choice["logprobs"]["content"]] == [("<|im_end|>", None)] * 6


def test_a_stop_token_of_the_body_ends_the_answer_also_where_the_models_own_is_ignored(
    chat: Chat, engine: Engine
) -> None:
    letter = id_of(chat, "x")
    for more in ({}, {"ignore_eos": True}):
        asked = {"logit_bias": {str(letter): 100}, "stop_token_ids": [5, letter], "max_tokens": 9, **more}
        body = body_of(chat, engine, **asked)
        assert body["choices"][0]["message"]["content"] == ""
        assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("stop", 1)


def test_stop_tokens_of_the_body_stand_beside_the_models_own(chat: Chat) -> None:
    assert ask(chat, stop_token_ids=[5, 6, 5]).prompt.stop_token_ids == {END, 5, 6}
    assert ask(chat, stop_token_ids=[5], ignore_eos=True).prompt.stop_token_ids == {5}
    assert ask(chat, ignore_eos=True).prompt.stop_token_ids == frozenset()


# ---- log-probabilities ----


def test_each_choice_tells_its_tokens_and_their_likeliest_rivals(chat: Chat, engine: Engine) -> None:
    for choice in body_of(chat, engine, logprobs=True, top_logprobs=3, n=3, max_tokens=20)["choices"]:
        logprobs = choice["logprobs"]
        assert logprobs["refusal"] is None
        assert 0 < len(logprobs["content"]) <= 20
        assert written(logprobs).decode("utf-8", "replace") == choice["message"]["content"]
        for entry in logprobs["content"]:
            rivals = [rival["logprob"] for rival in entry["top_logprobs"]]
            assert rivals == sorted(rivals, reverse=True)
            assert len(rivals) == 3
            assert -9999 <= entry["logprob"] <= rivals[0] <= 0
            assert sum(map(math.exp, rivals)) <= 1 + 1e-5


def test_the_likeliest_token_is_the_one_that_is_written_at_temperature_0(chat: Chat, engine: Engine) -> None:
    choice = choice_of(chat, engine, logprobs=True, top_logprobs=1, temperature=0, max_tokens=12)
    for entry in choice["logprobs"]["content"]:
        assert entry["top_logprobs"] == [{name: entry[name] for name in ("token", "logprob", "bytes")}]


def test_asked_without_rivals_none_are_told(chat: Chat, engine: Engine) -> None:
    for asked in ({"logprobs": True}, {"logprobs": True, "top_logprobs": 0}):
        content = choice_of(chat, engine, **asked, max_tokens=4)["logprobs"]["content"]
        assert [entry["top_logprobs"] for entry in content] == [[]] * len(content)
    assert choice_of(chat, engine, max_tokens=4)["logprobs"] is None
    assert choice_of(chat, engine, logprobs=False, max_tokens=4)["logprobs"] is None


def test_log_probabilities_end_with_the_text_where_a_stop_string_cuts_it(chat: Chat, engine: Engine) -> None:
    letter = str(id_of(chat, "x"))
    asked = {"logit_bias": {letter: 100}, "max_tokens": 9, "logprobs": True}
    cut = choice_of(chat, engine, **asked, stop="xxx")
    assert (cut["message"]["content"], cut["logprobs"]["content"]) == ("", [])
    whole = choice_of(chat, engine, **asked, stop="xxxxxxxxxxx")
    assert len(whole["logprobs"]["content"]) == 9


@pytest.mark.parametrize(("stop", "told"), [("d", 3), ("cd", 2), ("bcd", 1), ("e", 4), ("abcd", 0)])
def test_of_a_stop_string_no_token_is_told(chat: Chat, stop: str, told: int) -> None:
    ids = chat._tokenizer.encode_plain("abcd")
    answer = chat.answer(
        ask(chat, stop=stop, logprobs=True), [as_completion(ids, [TokenLogprob(-1.0)] * 4)], created_at=1
    )
    [choice] = json.loads(answer.body)["choices"]
    assert choice["message"]["content"] == "abcd"[:told]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == list("abcd"[:told])


def test_bytes_that_are_no_text_for_themselves_and_the_impossible_have_their_spelling(chat: Chat) -> None:
    first, second = chat._tokenizer.encode_plain("é")
    told = [TokenLogprob(-0.5, ((first, -0.5), (second, -math.inf))), TokenLogprob(-math.inf)]
    answer = chat.answer(ask(chat, logprobs=True), [as_completion([first, second], told)], created_at=1)
    [choice] = json.loads(answer.body)["choices"]
    assert choice["message"]["content"] == "é"
    assert choice["logprobs"]["content"] == [
        {
            "token": "\\xc3",
            "logprob": -0.5,
            "bytes": [0xC3],
            "top_logprobs": [
                {"token": "\\xc3", "logprob": -0.5, "bytes": [0xC3]},
                {"token": "\\xa9", "logprob": -9999.0, "bytes": [0xA9]},
            ],
        },
        {"token": "\\xa9", "logprob": -9999.0, "bytes": [0xA9], "top_logprobs": []},
    ]


# ---- nothing asked ----


def test_what_is_null_or_neutral_leaves_the_prompt_as_it_is(chat: Chat) -> None:
    names = ("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "repetition_penalty", "min_tokens")
    plain = ask(chat).prompt
    for neutral in (
        dict.fromkeys([*names, "ignore_eos", "stop_token_ids"]),
        {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}, "logprobs": False, "repetition_penalty": 1},
        {"min_tokens": 0, "ignore_eos": False, "stop_token_ids": []},
    ):
        asked = ask(chat, **neutral).prompt
        assert (asked.sampling, asked.stop_token_ids) == (plain.sampling, plain.stop_token_ids)
        assert (asked.tokens_min, asked.top_logprobs) == (0, None)
