"""Who reads along gets the message that others get whole: text, thinking and calls."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs.api.chunks import DONE, Chunks
from jobs.contract.chat import read
from jobs.contract.completion import Completion
from jobs.streams import Piece
from tests.worker.chat.asking import CREATED, body, completion
from worker.chat import Chat
from worker.model import ModelFolder

TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
LISTED = '[TOOL_CALLS][{"name": "f", "arguments": {}}]'
PARTS = st.sampled_from(
    [
        *("<think>", "</think>", CALL, LISTED, "<tool_call>", "<tool_", "</tool_call>", '{"name": "f"', "[TOOL_CALLS]"),
        *("Hi", " ", "\n", "\u3000", "é", "{", "[", "<", "END"),
    ]
)


@pytest.fixture(scope="module")
def plain(tiny: ModelFolder) -> Chat:
    return Chat(tiny, context_tokens=4096, fingerprint="fp")


def both(chat: Chat, text: str, **more: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """The message of a model that writes this text, put together from a stream, and whole."""
    asking = body(stream=True, **more)
    chunks, events = Chunks(read(asking), completion_id="x", created=1), list[bytes]()

    def publish(choice: int, text: str, *, start: int, is_thinking: bool = False) -> None:
        events.extend(chunks.piece(Piece(choice, start, text, is_thinking)))

    asked = chat.prompt(asking, seed_text="s", created=CREATED, publish=publish)
    ids = list[int]()
    watcher = asked.prompt.watch(0) if asked.prompt.watch else None
    for index in chat._tokenizer.encode_template(text):
        ids.append(index)
        if watcher and not watcher.accept(index):
            break
    answer = chat.answer(asked, [completion(ids)], created_at=1).body
    events += chunks.ending(Completion.model_validate_json(answer))
    return together(events), json.loads(answer)["choices"][0]["message"]


def together(events: list[bytes]) -> dict[str, Any]:
    """As a client adds the pieces up."""
    message: dict[str, Any] = {}
    for event in events:
        if event == DONE:
            continue
        [choice] = orjson.loads(event.removeprefix(b"data: "))["choices"]
        for name, value in choice["delta"].items():
            if name == "tool_calls":
                [call] = value
                assert call.pop("index") == len(message.setdefault(name, []))
                message[name].append(call)
            else:
                message[name] = message.get(name, "") + value
    return message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(PARTS, max_size=8).map("".join),
    st.sampled_from(["plain", "qwen", "mistral"]),
    st.sampled_from([None, "END", "\n"]),
    st.booleans(),
    st.booleans(),
)
@example(f"<think>hm\n</think>\n\nSo: \n{CALL}\n{CALL}", "qwen", None, True, True)
@example(f"\n So.{CALL}", "plain", None, True, True)
@example(f"So.\n{LISTED} Done", "mistral", None, True, True)
def test_a_stream_adds_up_to_the_answer(
    plain: Chat, qwen: Chat, mistral: Chat, text: str, name: str, stop: str | None, offers: bool, is_parallel: bool
) -> None:
    chat = {"plain": plain, "qwen": qwen, "mistral": mistral}[name]
    asked: dict[str, object] = {"tools": TOOLS, "parallel_tool_calls": is_parallel} if offers else {}
    streamed, whole = both(chat, text, stop=stop, **asked)
    for key in ("content", "reasoning", "reasoning_content", "tool_calls"):
        assert (streamed.get(key) or None) == (whole.get(key) or None), key


def test_a_forced_call_comes_whole(plain: Chat) -> None:
    streamed, whole = both(plain, CALL, tools=TOOLS, tool_choice="required")
    assert streamed["tool_calls"] == whole["tool_calls"]
    assert "content" not in streamed
