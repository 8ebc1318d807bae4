"""A stop string ends the answer, wherever tokens begin and end, and is not part of it."""

from hypothesis import given
from hypothesis import strategies as st

from tests.worker.chat.asking import ask, completion
from worker.chat import Chat, stops
from worker.chat.stops import StopWatcher
from worker.engine import FinishReason

signs = st.text("ab\n", max_size=6)


def written(stop_texts: list[str], tokens: list[str]) -> tuple[str, FinishReason]:
    """What comes of scripted tokens, each one of them an id."""
    stop_bytes = [stop.encode() for stop in stop_texts]
    watcher = StopWatcher(stop_bytes, [token.encode() for token in tokens])
    shown = b""
    for token_id, token in enumerate(tokens):
        shown += token.encode()
        if not watcher.accept(token_id):
            return stops.cut(shown, stop_bytes).decode(), FinishReason.STOP
    return stops.cut(shown, stop_bytes).decode(), FinishReason.LENGTH


def test_a_stop_may_span_tokens() -> None:
    assert written(["END"], ["some", "E", "N", "D", "never"]) == ("some", FinishReason.STOP)


def test_a_stop_may_lie_inside_a_token() -> None:
    assert written(["."], ["one", "a. b", "never"]) == ("onea", FinishReason.STOP)


def test_a_stop_may_be_a_sign_of_several_bytes() -> None:
    watcher = StopWatcher(["é".encode()], ["é".encode()[:1], "é".encode()[1:]])
    assert watcher.accept(0)
    assert not watcher.accept(1)


def test_of_two_stops_the_one_that_ends_first_counts() -> None:
    assert written(["abcd", "bc"], ["xabcd"]) == ("xa", FinishReason.STOP)
    assert written(["abcd", "bc"], [*"xabcd"]) == ("xa", FinishReason.STOP)


def test_of_stops_that_end_together_the_longest_counts() -> None:
    assert written(["b", "ab"], ["xab"]) == ("x", FinishReason.STOP)


def test_an_almost_complete_stop_is_text() -> None:
    assert written(["END"], ["E", "N"]) == ("EN", FinishReason.LENGTH)


@given(st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4), st.lists(signs, max_size=8))
def test_the_answer_does_not_depend_on_how_its_text_is_cut_into_tokens(
    stop_texts: list[str], tokens: list[str]
) -> None:
    assert written(stop_texts, tokens) == written(stop_texts, list("".join(tokens)))


def test_the_stop_is_in_the_count_and_not_in_the_text(chat: Chat) -> None:
    asked = ask(chat, stop=["END", "\n\n"])
    assert asked.prompt.watch is not None
    ids = chat._tokenizer.encode_plain("helloEND")
    watcher = asked.prompt.watch(0)
    assert [watcher.accept(index) for index in ids] == [True] * 7 + [False]
    assert watcher.mask() is None
    watcher.finish()
    answer = chat.answer(asked, [completion(ids)], created_at=1)
    assert '"content":"hello"' in answer.body
    assert answer.usage.completion_tokens == 8


def test_each_choice_looks_for_itself(chat: Chat) -> None:
    watch = ask(chat, stop="ab", n=2).prompt.watch
    assert watch is not None
    first, second = watch(0), watch(1)
    [a, b] = chat._tokenizer.encode_plain("ab")
    assert first.accept(a)
    assert second.accept(b)
    assert not first.accept(b)
