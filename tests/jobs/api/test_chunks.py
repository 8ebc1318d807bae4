"""The events of a stream whose answer is more than text."""

from typing import Any

import orjson

from jobs.api.chunks import DONE, Chunks
from jobs.contract.chat import read
from jobs.contract.completion import Completion
from jobs.streams import Piece

ORDER = read({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "stream": True})


def stored(message: dict[str, Any], *, logprobs: dict[str, Any] | None = None, reason: str = "stop") -> Completion:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "logprobs": logprobs, "finish_reason": reason}
    return Completion.model_validate({"id": "x", "created": 1, "model": "tiny", "choices": [choice]})


def choices(events: list[bytes]) -> list[dict[str, Any]]:
    assert events[-1] == DONE
    return [orjson.loads(event.removeprefix(b"data: "))["choices"][0] for event in events[:-1]]


def test_tool_calls_are_numbered_and_whole() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    ending = Chunks(ORDER, completion_id="x", created=1).ending(
        stored({"content": None, "tool_calls": [call, {**call, "id": "call_2"}]}, reason="tool_calls")
    )
    first, second, last = choices(list(ending))
    assert first["delta"] == {"tool_calls": [{"index": 0, **call}]}
    assert second["delta"]["tool_calls"][0]["index"] == 1
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")


def test_a_refusal_of_the_model_and_the_logprobs_are_told() -> None:
    ending = Chunks(ORDER, completion_id="x", created=1).ending(
        stored({"content": "No", "refusal": "I will not."}, logprobs={"content": []})
    )
    text, refusal, _ = choices(list(ending))
    assert (text["delta"], text["logprobs"]) == ({"content": "No"}, {"content": []})
    assert refusal["delta"] == {"refusal": "I will not."}


def test_a_piece_of_a_choice_that_was_not_asked_for_is_not_sent() -> None:
    chunks = Chunks(ORDER, completion_id="x", created=1)
    assert list(chunks.piece(Piece(1, 0, "x"))) == list(chunks.piece(Piece(-1, 0, "x"))) == []


def test_thinking_goes_before_the_answer_whether_or_not_it_was_heard_before() -> None:
    thought = {"reasoning_content": "Hm, 2", "reasoning": "Hm, 2"}
    whole = stored({"content": "Two", **thought})
    first, second, _ = choices(list(Chunks(ORDER, completion_id="x", created=1).ending(whole)))
    assert (first["delta"], second["delta"]) == (thought, {"content": "Two"})
    heard = Chunks(ORDER, completion_id="x", created=1)
    pieces = [Piece(0, 0, "Hm", is_thinking=True), Piece(0, 0, "Tw"), Piece(0, 1, "m,", is_thinking=True)]
    events = [*(event for piece in pieces for event in heard.piece(piece)), *heard.ending(whole)]
    assert [choice["delta"] for choice in choices(events)] == [
        {"reasoning_content": "Hm", "reasoning": "Hm"},
        {"content": "Tw"},
        {"reasoning_content": ",", "reasoning": ","},
        {"reasoning_content": " 2", "reasoning": " 2"},
        {"content": "o"},
        {},
    ]


def test_a_call_of_the_older_form_is_told() -> None:
    call = {"name": "look", "arguments": "{}"}
    ending = Chunks(ORDER, completion_id="x", created=1).ending(
        stored({"content": None, "function_call": call}, reason="function_call")
    )
    assert choices(list(ending))[0]["delta"] == {"function_call": call}
