"""What an answer is held to tells which tokens can only follow, through all that watches beside it."""

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from tests import tiny_model
from tests.worker.chat.asking import CREATED, ask, body, said
from tests.worker.chat.walking import allowed
from worker.chat import Chat
from worker.engine import EngineSettings, Watcher, load
from worker.model import ModelFolder, Precision

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"the_city_to_look_at": {"type": "string", "maxLength": 5}},
        "required": ["the_city_to_look_at"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": WEATHER}]
ANSWERS = {"enum": [["the one answer"], ["or the other"]]}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": ANSWERS}}
CALL = '{"name": "get_weather", "arguments": {'


@pytest.fixture(scope="module")
def chat(tiny: ModelFolder) -> Chat:
    """With room for the tools' description: the tiny model has a token for each byte."""
    return Chat(tiny, context_tokens=4096, fingerprint="fp_tiny")


def watcher_of(chat: Chat, **more: object) -> Watcher:
    watch = ask(chat, messages=said("What is the weather?"), stop="#", **more).prompt.watch
    assert watch is not None
    return watch(0)


def forced_after(chat: Chat, watcher: Watcher, text: str) -> str:
    """What is told after a text, which is the first that is allowed of it."""
    for token_id in chat._tokenizer.encode_template(text):
        check(watcher)
        assert watcher.accept(token_id)
    return chat._tokenizer.decode(list(check(watcher)))


def check(watcher: Watcher) -> list[int]:
    """What is told to be forced: nothing else is allowed."""
    if forced := list(watcher.forced()):
        np.testing.assert_array_equal(allowed(watcher), forced[:1])
    return forced


def test_a_call_that_must_be_made_is_told_up_to_where_the_model_has_a_choice(chat: Chat) -> None:
    watcher = watcher_of(chat, tools=TOOLS, tool_choice="required")
    assert forced_after(chat, watcher, "<").startswith(f"tool_call>\n{CALL}")


def test_a_call_is_told_from_where_the_model_begins_one(chat: Chat) -> None:
    watcher = watcher_of(chat, tools=TOOLS)
    assert forced_after(chat, watcher, "Let me see. <tool_cal") == ""
    assert forced_after(chat, watcher, "l>").startswith(f"\n{CALL}")


def test_a_mark_that_is_one_token_of_text_is_written_as_such(qwen: Chat) -> None:
    """As Qwen 3 was trained to: not sign by sign, though its text would be the same."""
    [mark], [think] = (qwen._tokenizer.encode_template(text) for text in ("<tool_call>", "<think>"))
    assert allowed(watcher_of(qwen, tools=TOOLS, tool_choice="required")).tolist() == sorted([mark, think])
    assert forced_after(qwen, watcher_of(qwen, tools=TOOLS), "Well. <tool_call>").startswith(f"\n{CALL}")


def test_nothing_is_told_while_two_ways_are_open(chat: Chat) -> None:
    watcher = watcher_of(chat, tools=TOOLS, response_format=SCHEMA)
    assert forced_after(chat, watcher, "") == ""
    assert forced_after(chat, watcher, "[") == ""
    assert forced_after(chat, watcher, '"t') == 'he one answer"'


def test_nothing_is_told_of_an_answer_before_the_thinking_is_over(qwen: Chat) -> None:
    watcher = watcher_of(qwen, tools=TOOLS, tool_choice="required")
    assert forced_after(qwen, watcher, "") == ""
    assert forced_after(qwen, watcher, "<think>Hm <tool_call>") == ""
    assert forced_after(qwen, watcher, "</think>").startswith(f"<tool_call>\n{CALL}")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("asked", [{"tools": TOOLS, "tool_choice": "required"}, {"response_format": SCHEMA}])
def test_what_is_told_is_always_the_one_way_on(chat: Chat, asked: dict[str, Any], seed: int) -> None:
    watcher, random = watcher_of(chat, **asked), Random(seed)
    told = 0
    for _ in range(200):
        told += bool(check(watcher))
        if not watcher.accept(int(random.choice(allowed(watcher)))):
            break
    assert told > 3


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
@pytest.mark.parametrize("asked", [{}, {"logprobs": True}])
def test_what_must_come_first_is_computed_with_the_prompt_and_told_to_who_reads_along(
    tmp_path: Path, precision: Precision, asked: dict[str, object]
) -> None:
    """But where it is to be told what the model thinks of each token, it is asked for each."""
    folder = tiny_model.write(tmp_path / "tiny", precision=precision)
    chat, told = Chat(folder, context_tokens=512, fingerprint="fp"), dict[int, str]()

    def publish(choice: int, text: str, *, start: int, is_thinking: bool = False) -> None:
        assert start == len(told.get(choice, ""))
        told[choice] = told.get(choice, "") + text

    form = {"regex": "Answer number [0-9]{6}"}
    wanted = chat.prompt(
        body(structured_outputs=form, n=2, stop="0", **asked), seed_text="s", created=CREATED, publish=publish
    )
    with load(folder, EngineSettings(threads=1, context_tokens_max=512, slots_max=4)) as engine:
        completions = engine.submit(wanted.prompt).result(30)
    answer = json.loads(chat.answer(wanted, completions, created_at=1).body)
    lengths = []
    for choice in answer["choices"]:
        content = choice["message"]["content"]
        is_stopped = len(content) < len("Answer number 123456")
        assert told[choice["index"]] == content[: None if is_stopped else -1]  # the last comes with the answer
        assert content.startswith("Answer number ")
        lengths.append(len(content) + is_stopped)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(wanted.prompt.token_ids)
    assert usage["completion_tokens"] == sum(lengths)
    drawn = max(lengths) - (0 if asked else len("Answer number "))
    assert engine.progress.steps == drawn, "one for the first token, with the prompt, and one for each of the others"
