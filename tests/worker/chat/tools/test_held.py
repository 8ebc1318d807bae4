"""An answer that may call is held to a call from where one begins."""

from typing import Any

import numpy as np
import pytest

from tests import tiny_model
from tests.worker.chat.asking import ask, said
from worker.chat import Chat
from worker.chat.tools.beginning import Beginning
from worker.engine import Watcher
from worker.model import ModelFolder

STRICT = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
]
LOOSE = [{"type": "function", "function": {"name": "f"}}]
FORM: dict[str, Any] = {"response_format": {"type": "json_object"}, "messages": said("JSON")}


@pytest.fixture(scope="module")
def chat(tiny: ModelFolder) -> Chat:
    return Chat(tiny, context_tokens=4096, fingerprint="fp")


def watcher_of(chat: Chat, **more: object) -> Watcher:
    watch = ask(chat, **more).prompt.watch
    assert watch is not None
    return watch(0)


def written(watcher: Watcher, chat: Chat, text: str) -> list[bool]:
    return [watcher.accept(index) for index in chat._tokenizer.encode_template(text)]


def allowed(watcher: Watcher, chat: Chat) -> str | None:
    """The signs that may come next, control tokens as `$`."""
    mask = watcher.mask()
    if mask is None:
        return None
    ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
    special = chat._tokenizer.special_token_ids
    return "".join(sorted("$" if index in special else chat._tokenizer.decode([index]) for index in ids))


# ---- strict functions ----


def test_text_is_free_until_a_call_begins_and_then_it_must_be_one(chat: Chat) -> None:
    watcher = watcher_of(chat, tools=STRICT)
    assert all(written(watcher, chat, "Well, <tool_cal"))
    assert allowed(watcher, chat) is None
    assert all(written(watcher, chat, "l>"))
    assert allowed(watcher, chat) == "\n"
    assert all(written(watcher, chat, '\n{"name": "f", "arguments": {"a": 7'))
    assert "}" in str(allowed(watcher, chat))
    assert '"' not in str(allowed(watcher, chat))
    assert all(written(watcher, chat, "}}\n</tool_call>"))
    assert allowed(watcher, chat) == "\n$"


def test_a_single_call_ends_the_answer(chat: Chat) -> None:
    watcher = watcher_of(chat, tools=STRICT, parallel_tool_calls=False)
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 7}}\n</tool_call>'
    assert written(watcher, chat, call) == [True] * (len(call) - 1) + [False]


def test_a_call_may_begin_with_a_control_token(mistral: Chat) -> None:
    watcher = watcher_of(mistral, tools=STRICT)
    assert all(written(watcher, mistral, "Well.[TOOL_CALLS]"))
    assert allowed(watcher, mistral) == "["
    assert written(watcher, mistral, '[{"name": "f", "arguments": {"a": 7}}]')[-1] is False


def test_a_beginning_that_no_call_goes_on_from_leaves_the_text_free(tmp_path: Any) -> None:
    """One token holds the end of the mark and what no call has behind it."""
    folder = tiny_model.write(tmp_path / "tiny", template="[TOOL_CALLS]{{ tools }}", whole=["CALLS]!"])
    chat = Chat(folder, context_tokens=4096, fingerprint="fp")
    watcher = watcher_of(chat, tools=STRICT)
    assert all(written(watcher, chat, "[TOOL_CALLS]! and more"))
    assert allowed(watcher, chat) is None


def test_a_call_that_was_begun_in_other_tokens_than_the_grammar_would_choose_goes_on(smollm2: ModelFolder) -> None:
    """The grammar knows only one way to begin, and its own tokens for it."""
    chat = Chat(smollm2, context_tokens=4096, fingerprint="fp")
    watcher = watcher_of(chat, tools=STRICT)
    token_bytes, call = chat._tokenizer.token_bytes, '<tool_call>\n{"name": "f", "arguments": {"a": 7}}\n</tool_call>'
    for place, sign in enumerate(call):
        mask = watcher.mask()
        if mask is not None:
            ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
            assert any(token_bytes[index] and call[place:].encode().startswith(token_bytes[index]) for index in ids)
        [token_id] = chat._tokenizer.encode_plain(sign)
        assert watcher.accept(token_id)


def test_functions_that_are_not_strict_leave_the_text_free(chat: Chat) -> None:
    assert ask(chat, tools=LOOSE).prompt.watch is None


# ---- beside a response format ----


def test_an_answer_in_a_format_may_call_instead(chat: Chat) -> None:
    assert allowed(watcher_of(chat, tools=LOOSE, **FORM), chat) == "<{"
    answering, calling = watcher_of(chat, tools=LOOSE, **FORM), watcher_of(chat, tools=LOOSE, **FORM)
    assert written(answering, chat, '{"a": 1}')[-1] is False
    assert all(written(calling, chat, "<tool_call>"))
    assert allowed(calling, chat) == "\n"


def test_a_forced_call_does_not_have_the_format_of_answers(chat: Chat) -> None:
    assert allowed(watcher_of(chat, tools=LOOSE, tool_choice="required", **FORM), chat) == "<"


# ---- where calls begin ----


def held(beginning: Beginning, *parts: bytes) -> list[int]:
    return [beginning.take(part) for part in parts]


def test_only_what_may_be_a_call_is_held() -> None:
    anywhere = Beginning(["<call>", "fun["], only_first=False)
    assert held(anywhere, b"a", b" ", b"<", b"ca", b"b", b"\n", b"fun") == [0, 1, 2, 4, 0, 1, 4]
    assert not anywhere.has_come
    assert held(anywhere, b"[1") == [6]
    assert (anywhere.has_come, anywhere.written) == (True, b"fun[1")
    assert held(anywhere, b"2") == [7]


def test_where_only_the_first_counts_text_is_free_for_good() -> None:
    first = Beginning(["<|tag|>", "{"], only_first=True)
    assert held(first, b" ", b"a", b" {") == [1, 0, 0]
    assert held(Beginning(["<|tag|>", "{"], only_first=True), b"\n<|ta", b"g|>", b"x") == [5, 8, 9]
