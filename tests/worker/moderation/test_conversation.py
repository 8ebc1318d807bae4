"""What of a body and of an answer is judged."""

from tests.worker.moderation.saying import said
from worker.moderation import conversation
from worker.moderation.conversation import Conversation, Speaker, Turn


def asked(*messages: dict[str, object], **more: object) -> Conversation:
    return conversation.asked({"model": "tiny", "messages": list(messages), **more})


def test_every_role_is_judged_and_the_assistants_turns_are_the_agents() -> None:
    roles = ("system", "developer", "user", "assistant", "tool", "function")
    turns = asked(*({"role": role, "content": f"by {role}"} for role in roles)).turns
    assert [turn.text for turn in turns] == [f"by {role}" for role in roles]
    assert [turn.speaker for turn in turns].count(Speaker.AGENT) == 1
    assert turns[3].speaker is Speaker.AGENT


def test_parts_names_and_refusals_are_judged() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "refusal", "refusal": "two"}]
    found = asked({"role": "assistant", "content": parts, "name": "three", "refusal": "four"})
    assert set(found.text.split("\n")) == {"one", "two", "three", "four"}


def test_calls_are_judged_as_they_are_read_and_not_as_they_are_escaped() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "buy", "arguments": '{"what": "\\u0062omb"}'}}
    odd = {"id": "call_2", "type": "function", "function": {"name": "buy", "arguments": "{bomb"}}
    text = asked({"role": "assistant", "content": None, "tool_calls": [call, odd]}).text
    assert '{"what":"bomb"}' in text
    assert "{bomb" in text
    assert "call_1" not in text


def test_what_a_model_reads_of_tools_and_formats_is_judged() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "Grobian", "parameters": {"bomb": {}}}}
    kwargs = {"reasoning_style": "blunt"}
    text = asked({"role": "user", "content": "Hi"}, tools=[tool], functions=None, chat_template_kwargs=kwargs).text
    assert [word for word in ("Grobian", "bomb", "blunt", "Hi") if word not in text] == []


def test_of_an_answer_all_that_a_client_would_get_is_judged_and_nothing_else() -> None:
    message = {
        "role": "assistant",
        "content": "one",
        "refusal": None,
        "reasoning_content": "two",
        "reasoning": "two",
        "tool_calls": [{"id": "x", "type": "function", "function": {"name": "three", "arguments": "4"}}],
    }
    answered = said("What?").answered(message)
    assert answered.text == "one\ntwo\nthree\n4"
    assert answered.turns[0] == Turn(Speaker.USER, "What?")
    assert answered.turns[1].speaker is Speaker.AGENT
