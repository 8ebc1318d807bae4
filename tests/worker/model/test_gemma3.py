"""Gemma 3 270M, from the messages to the text, against what an independent implementation said: see
benchmarks/reference_tokens.py.

It is fetched (238 MB) and converted (1.1 GB) by `make gemma` only; where it is installed, these tests run with all
others. Its architecture, its kinds of quantization and its tokenizer are proved in every run, each for itself.
"""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import models_dir
from tests.worker.chat.asking import ask
from worker import model
from worker.chat import Chat
from worker.engine import Completion, Engine, EngineSettings, load
from worker.model import ModelFolder

NAME: Final = "gemma3-270m-fp32"
CONTEXT_TOKENS: Final = 2048
PATIENCE_SECONDS: Final = 1800
KNOBS: Final = EngineSettings(threads=2, context_tokens_max=CONTEXT_TOKENS, slots_max=16)


@cache
def expected() -> Any:
    return json.loads(Path(__file__).with_name("expected_tokens_gemma3.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def gemma() -> ModelFolder:
    if "GEMMA" in os.environ:
        return model.add("gemma3-270m", models_dir(), name=NAME, precision="fp32")
    try:
        return model.open_named(NAME, models_dir())
    except model.UnknownModel:
        pytest.skip("Gemma 3 270M is not installed; make gemma fetches it")


@pytest.fixture(scope="module")
def engine(gemma: ModelFolder) -> Iterator[Engine]:
    with load(gemma, KNOBS) as engine:
        yield engine


def test_prompts_are_rendered_and_become_the_ids_that_transformers_gives_them(gemma: ModelFolder) -> None:
    chat = Chat(gemma, context_tokens=CONTEXT_TOKENS, fingerprint="fp")
    answers = expected()["answers"]
    assert max(len(answer["prompt_ids"]) for answer in answers) > 512  # its windows
    for answer in answers:
        assert list(ask(chat, messages=answer["messages"]).prompt.token_ids) == answer["prompt_ids"]


def test_greedy_answers_equal_those_of_transformers_token_for_token(gemma: ModelFolder, engine: Engine) -> None:
    """On past their ends, all of them side by side."""
    answers = expected()["answers"]
    found = completions(gemma, engine, max_tokens=64, ignore_eos=True)
    assert [list(one.token_ids) for one, _ in found] == [answer["answer_ids"] for answer in answers]


def test_answers_are_told_in_the_words_of_transformers(gemma: ModelFolder, engine: Engine) -> None:
    found = completions(gemma, engine, max_tokens=64)
    assert [text for _, text in found] == [answer["text"] for answer in expected()["answers"]]


def test_texts_become_the_ids_that_transformers_gives_them(gemma: ModelFolder) -> None:
    tokenizer = gemma.tokenizer()
    control = [token for index in tokenizer.special_token_ids if (token := tokenizer.token_text(index))]
    for case in expected()["texts"]:
        text = case["text"]
        is_plain = not any(token in text for token in control)
        assert tokenizer.encode_template(tokenizer.shield(text) if is_plain else text) == case["ids"], text


def completions(gemma: ModelFolder, engine: Engine, **options: Any) -> list[tuple[Completion, str]]:
    """The tokens and the text of each answer, asked for at once, each with temperature 0."""
    chat = Chat(gemma, context_tokens=CONTEXT_TOKENS, fingerprint="fp")
    asked = [ask(chat, messages=one["messages"], temperature=0, **options) for one in expected()["answers"]]
    futures = [engine.submit(one.prompt) for one in asked]
    found = []
    for one, future in zip(asked, futures, strict=True):
        [completion] = future.result(PATIENCE_SECONDS)
        [choice] = json.loads(chat.answer(one, [completion], created_at=1).body)["choices"]
        found.append((completion, choice["message"]["content"]))
    return found
