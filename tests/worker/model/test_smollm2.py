"""The demo's model against what an independent implementation said: see benchmarks/reference_tokens.py."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from tests.worker.model.graph_loop import GraphLoop
from worker.model import ModelFolder


@cache
def expected() -> Any:
    return json.loads(Path(__file__).with_name("expected_tokens.json").read_text("utf-8"))


def test_greedy_answers_equal_those_of_transformers_token_for_token(smollm2_fp32: ModelFolder) -> None:
    answers = expected()["answers"]
    loop = GraphLoop(smollm2_fp32, slots=len(answers), room=384)
    found = loop.greedy([answer["prompt_ids"] for answer in answers], tokens=64)
    assert len(answers) == 20
    assert [answer["answer_ids"] for answer in answers] == found


def test_prompts_become_the_ids_that_transformers_gives_them(smollm2_fp32: ModelFolder) -> None:
    tokenizer = smollm2_fp32.tokenizer()
    for answer in expected()["answers"]:
        assert tokenizer.encode_template(answer["rendered"]) == answer["prompt_ids"]


def test_the_stored_template_renders_as_in_transformers(smollm2_fp32: ModelFolder) -> None:
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(smollm2_fp32.chat_template())
    for answer in expected()["answers"]:
        rendered = template.render(messages=answer["messages"], add_generation_prompt=True)
        assert rendered == answer["rendered"]


def test_texts_become_the_ids_that_transformers_gives_them(smollm2_fp32: ModelFolder) -> None:
    tokenizer = smollm2_fp32.tokenizer()
    control = [token for index in tokenizer.special_token_ids if (token := tokenizer.token_text(index))]
    for case in expected()["texts"]:
        text = case["text"]
        is_plain = not any(token in text for token in control)
        assert tokenizer.encode_template(tokenizer.shield(text) if is_plain else text) == case["ids"], text


def test_every_text_comes_back_from_its_ids(smollm2_fp32: ModelFolder) -> None:
    tokenizer = smollm2_fp32.tokenizer()
    for case in expected()["texts"]:
        assert tokenizer.decode(tokenizer.encode_plain(case["text"])) == case["text"]


def test_every_numeric_sign_is_a_word_of_its_own(smollm2_fp32: ModelFolder) -> None:
    tokenizer = smollm2_fp32.tokenizer()
    assert [tokenizer.token_text(index) for index in tokenizer.encode_plain("a 12 ½")] == [*"a 12 ½"]


def test_an_answer_ends_at_the_end_of_a_turn_or_of_a_text(smollm2_fp32: ModelFolder) -> None:
    tokenizer = smollm2_fp32.tokenizer()
    assert {tokenizer.token_text(index) for index in smollm2_fp32.spec.eos_token_ids} == {
        "<|im_end|>",
        "<|endoftext|>",
    }
