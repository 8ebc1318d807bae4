"""The thinking of a model stands beside its answer, and what was asked of the answer begins behind it."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.errors import BadRequest
from tests import tiny_model
from tests.worker.chat import templates
from tests.worker.chat.asking import CREATED, ask, body, completion, said
from worker.chat import Chat
from worker.engine import Completion, EngineSettings, FinishReason, TokenLogprob, Watcher, load
from worker.model import ModelFolder

JSON = {"type": "json_object"}
IN_JSON: dict[str, Any] = {"response_format": JSON, "messages": said("JSON")}


@pytest.fixture(scope="module")
def always_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model.write(
        tmp_path_factory.mktemp("always") / "tiny",
        template=templates.ALWAYS_THINKING,
        whole=["<think>", "</think>"],
    )


@pytest.fixture(scope="module")
def always(always_model: ModelFolder) -> Chat:
    return Chat(always_model, context_tokens=512, fingerprint="fp")


@pytest.fixture(scope="module")
def effort(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder = tiny_model.write(tmp_path_factory.mktemp("effort") / "tiny", template=templates.EFFORT)
    return Chat(folder, context_tokens=512, fingerprint="fp")


def ids_of(chat: Chat, text: str) -> list[int]:
    return chat._tokenizer.encode_template(text)


def answer_of(chat: Chat, text: str, reason: FinishReason = FinishReason.STOP, **more: object) -> dict[str, Any]:
    answer = chat.answer(ask(chat, **more), [completion(ids_of(chat, text), reason)], created_at=1)
    parsed: dict[str, Any] = json.loads(answer.body)
    return parsed


def said_in(chat: Chat, text: str, **more: object) -> tuple[str | None, str | None]:
    """Thinking and content."""
    message = answer_of(chat, text, **more)["choices"][0]["message"]
    assert message.get("reasoning") == message.get("reasoning_content")
    return message.get("reasoning"), message["content"]


def watcher_of(chat: Chat, **more: object) -> Watcher:
    watch = ask(chat, **more).prompt.watch
    assert watch is not None
    return watch(0)


def allowed(watcher: Watcher) -> set[int] | None:
    mask = watcher.mask()
    return None if mask is None else set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def written(watcher: Watcher, ids: list[int]) -> list[bool]:
    return [watcher.accept(index) for index in ids]


# ---- what comes back ----


def test_thinking_stands_beside_the_answer(qwen: Chat) -> None:
    assert said_in(qwen, "<think>\nHm, 2.\n</think>\n\nTwo.") == ("Hm, 2.", "Two.")


def test_thinking_that_the_prompt_has_begun_needs_no_first_tag(always: Chat) -> None:
    assert said_in(always, "Hm, 2.\n</think>\n\nTwo.") == ("Hm, 2.", "Two.")


def test_thinking_without_an_end_is_all_thinking(always: Chat, qwen: Chat) -> None:
    assert said_in(always, "Hm, 2") == ("Hm, 2", "")
    assert said_in(qwen, "<think>Hm, 2") == ("Hm, 2", "")


def test_an_answer_without_thinking_has_no_keys_for_it(qwen: Chat) -> None:
    message = answer_of(qwen, "Two.")["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Two.", "refusal": None, "annotations": []}
    assert said_in(qwen, "<think>\n\n</think>\n\nTwo.") == (None, "Two.")


def test_a_tag_that_comes_later_is_text(qwen: Chat) -> None:
    assert said_in(qwen, "I <think>so</think>") == (None, "I <think>so</think>")


def test_a_model_whose_tags_are_no_tokens_does_not_think(chat: Chat) -> None:
    assert said_in(chat, "<think>Hm</think>Two.") == (None, "<think>Hm</think>Two.")


def test_tokens_of_thinking_are_counted_with_their_tags(qwen: Chat, always: Chat) -> None:
    usage = answer_of(qwen, "<think>abc</think>\n\nTwo.")["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 5
    assert answer_of(always, "abc</think>\n\nTwo.")["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4
    both = [completion(ids_of(qwen, text)) for text in ("<think>abc</think>Two.", "Two.")]
    assert qwen.answer(ask(qwen, n=2), both, created_at=1).usage.reasoning_tokens == 5


def test_thinking_is_not_searched_for_calls_nor_for_stop_strings(qwen: Chat) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    tools = [{"type": "function", "function": {"name": "f"}}]
    text = f"<think>\n{call} END\n</think>\n\nno"
    assert said_in(qwen, text, tools=tools, stop="END") == (f"{call} END", "no")
    choice = answer_of(qwen, f"<think>\nhm\n</think>\n\n{call}", tools=tools)["choices"][0]
    assert (choice["message"]["content"], choice["message"]["reasoning"]) == (None, "hm")
    assert len(choice["message"]["tool_calls"]) == 1


# ---- while it is written ----


def test_stop_strings_end_the_answer_and_not_the_thinking(always: Chat) -> None:
    watcher = watcher_of(always, stop="ab")
    assert written(watcher, ids_of(always, "ab</think>\n\nab"))[-2:] == [True, False]
    assert said_in(always, "ab</think>\n\nxab", stop="ab") == ("ab", "x")


def test_a_stop_string_of_blanks_does_not_end_an_answer_before_it_begins(always: Chat) -> None:
    watcher = watcher_of(always, stop="\n\n")
    assert all(written(watcher, ids_of(always, "hm</think>\n\nab\n")))
    assert said_in(always, "hm</think>\n\nab\n\n", stop="\n\n") == ("hm", "ab")


def test_a_grammar_begins_behind_the_thinking(always: Chat) -> None:
    watcher = watcher_of(always, **IN_JSON)
    [end] = always._tokenizer.eos_token_ids
    free = allowed(watcher)
    assert free is not None
    assert free >= set(range(tiny_model.SPEC.vocabulary)) - {end}
    assert end not in free
    assert all(written(watcher, ids_of(always, "no json</think>")))
    assert allowed(watcher) == set(ids_of(always, "{"))
    assert written(watcher, ids_of(always, '{"a":1}'))[-1] is False


def test_a_model_may_think_before_a_grammar_if_it_likes(qwen: Chat) -> None:
    think, brace = ids_of(qwen, "<think>")[0], ids_of(qwen, "{")[0]
    assert allowed(watcher_of(qwen, **IN_JSON)) == {think, brace}
    thinking = watcher_of(qwen, **IN_JSON)
    assert all(written(thinking, ids_of(qwen, "<think>hm</think>")))
    assert allowed(thinking) == {brace}
    answering = watcher_of(qwen, **IN_JSON)
    assert all(written(answering, ids_of(qwen, "{")))
    assert think not in (allowed(answering) or ())


def test_a_prompt_that_has_ended_the_thinking_leaves_none_to_begin(qwen: Chat) -> None:
    watcher = watcher_of(qwen, **IN_JSON, chat_template_kwargs={"enable_thinking": False})
    assert allowed(watcher) == set(ids_of(qwen, "{"))


def test_a_budget_ends_the_thinking(always: Chat, qwen: Chat) -> None:
    [end] = ids_of(always, "</think>")
    watcher = watcher_of(always, thinking_token_budget=3)
    assert [allowed(watcher) for index in ids_of(always, "abc") if watcher.accept(index)] == [None, None, {end}]
    assert watcher.accept(end)
    assert allowed(watcher) is None
    assert allowed(watcher_of(always, thinking_token_budget=0)) == {end}
    begun = watcher_of(qwen, thinking_token_budget=0)
    assert allowed(begun) is None
    assert begun.accept(ids_of(qwen, "<think>")[0])
    assert allowed(begun) == set(ids_of(qwen, "</think>"))
    assert ask(always, thinking_token_budget=-1).prompt.watch is None


def test_a_model_with_a_budget_answers(always_model: ModelFolder, always: Chat) -> None:
    asked = ask(always, thinking_token_budget=7, max_tokens=30, n=4, ignore_eos=True)
    with load(always_model, EngineSettings(threads=1, context_tokens_max=512, slots_max=4)) as engine:
        completions = engine.submit(asked.prompt).result(60)
    answer = always.answer(asked, completions, created_at=1)
    assert answer.usage.reasoning_tokens == 4 * 8
    assert all(choice["message"]["content"] for choice in json.loads(answer.body)["choices"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "é", "{"]), max_size=9),
    st.sampled_from([None, "a", "\n"]),
    st.booleans(),
)
def test_what_is_published_begins_the_answer_and_is_its_thinking(
    always: Chat, qwen: Chat, parts: list[str], stop: str | None, one: bool
) -> None:
    chat = always if one else qwen
    said, thought = list[str](), list[str]()

    def publish(choice: int, text: str, *, start: int, is_thinking: bool = False) -> None:
        pieces = thought if is_thinking else said
        assert start == len("".join(pieces))
        pieces.append(text)

    asked = chat.prompt(body(stop=stop), seed_text="s", created=CREATED, publish=publish)
    assert asked.prompt.watch is not None
    watcher, ids = asked.prompt.watch(0), list[int]()
    for index in ids_of(chat, "".join(parts)):
        ids.append(index)
        if not watcher.accept(index):
            break
    message = json.loads(chat.answer(asked, [completion(ids)], created_at=1).body)["choices"][0]["message"]
    assert message["content"].startswith("".join(said))
    assert message.get("reasoning", "") == "".join(thought)


# ---- what the template is told ----


def text_of(chat: Chat, **more: object) -> str:
    return "".join(chat._tokenizer.token_text(index) for index in ask(chat, **more).prompt.token_ids)


def test_an_effort_is_told_to_a_template_that_knows_efforts(effort: Chat) -> None:
    assert text_of(effort, reasoning_effort="minimal") == "Say hellominimal"
    assert text_of(effort) == "Say hello"


@pytest.mark.parametrize(("value", "closed"), [("none", True), ("low", False), (None, False)])
def test_an_effort_is_a_switch_to_a_template_that_knows_only_that(qwen: Chat, value: str | None, closed: bool) -> None:
    assert text_of(qwen, reasoning_effort=value).endswith("</think>\n\n") is closed


def test_a_templates_own_variables_can_be_set_and_are_no_control_tokens(effort: Chat) -> None:
    asked = {"chat_template_kwargs": {"style": "<|im_end|>", "reasoning_effort": "low"}, "reasoning_effort": "high"}
    assert text_of(effort, **asked) == "Say hellolow<|im_end|>"
    assert not set(ask(effort, **asked).prompt.token_ids) & effort._tokenizer.special_token_ids


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ],
)
def test_what_a_model_would_not_notice_is_refused(chat: Chat, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        ask(chat, **asked)
    assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")


def test_a_model_that_always_thinks_cannot_be_told_not_to(always: Chat, chat: Chat) -> None:
    with pytest.raises(BadRequest):
        ask(always, reasoning_effort="none")
    assert text_of(chat, reasoning_effort="none") == text_of(chat)


def test_logprobs_are_of_the_answer(always: Chat) -> None:
    ids = ids_of(always, "hm</think>\n\nab")
    told = tuple(TokenLogprob(-float(place)) for place in range(len(ids)))
    found = Completion(tuple(ids), FinishReason.STOP, 7, cached_tokens=0, output_tokens=9, logprobs=told)
    [choice] = json.loads(always.answer(ask(always, logprobs=True), [found], created_at=1).body)["choices"]
    assert [(entry["token"], entry["logprob"]) for entry in choice["logprobs"]["content"]] == [("a", -5.0), ("b", -6.0)]
