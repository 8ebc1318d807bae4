"""Lines alike share one computation, on an engine whose answers the test gives by hand."""

from concurrent.futures import CancelledError, Future
from dataclasses import replace

import pytest

from worker.engine import Completion, EngineFailed, FinishReason, Prompt, Sampling
from worker.twins import UNHEARD, Twins, likeness

PROMPT = Prompt(token_ids=[1, 2, 3], sampling=Sampling(seed=5, temperature=0), priority=100)
ANSWER = [Completion((7, 8), FinishReason.STOP, prompt_tokens=3, cached_tokens=1, output_tokens=3)]
KNOWN = [replace(ANSWER[0], cached_tokens=3)]
BODY: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


class HandEngine:
    """Notes what it is asked, and answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Future[list[Completion]]] = []

    def submit(self, prompt: Prompt) -> Future[list[Completion]]:
        self.asked.append(Future())
        return self.asked[-1]


@pytest.fixture
def engine() -> HandEngine:
    return HandEngine()


@pytest.fixture
def twins(engine: HandEngine) -> Twins:
    return Twins(engine.submit)


def test_lines_alike_are_computed_once_and_all_but_the_first_count_as_cached(engine: HandEngine, twins: Twins) -> None:
    lines = [twins.submit(PROMPT, b"same") for _ in range(4)]
    assert len(engine.asked) == 1
    assert not any(line.done() for line in lines)
    engine.asked[0].set_result(ANSWER)
    assert [line.result(0) for line in lines] == [ANSWER, KNOWN, KNOWN, KNOWN]


def test_lines_that_are_not_alike_are_computed_each(engine: HandEngine, twins: Twins) -> None:
    for alike in (b"one", b"other", None, None):
        twins.submit(PROMPT, alike)
    assert len(engine.asked) == 4


def test_an_answer_is_remembered_for_lines_that_come_later(engine: HandEngine, twins: Twins) -> None:
    twins.submit(PROMPT, b"same")
    engine.asked[0].set_result(ANSWER)
    assert twins.submit(PROMPT, b"same").result(0) == KNOWN
    assert len(engine.asked) == 1


def test_an_engine_that_answers_at_once_is_asked_once() -> None:
    asked: list[Prompt] = []

    def submit(prompt: Prompt) -> Future[list[Completion]]:
        asked.append(prompt)
        done: Future[list[Completion]] = Future()
        done.set_result(ANSWER)
        return done

    twins = Twins(submit)
    assert [twins.submit(PROMPT, b"same").result(0) for _ in range(2)] == [ANSWER, KNOWN]
    assert len(asked) == 1


def test_a_cancelled_line_takes_nothing_from_the_others(engine: HandEngine, twins: Twins) -> None:
    first, second, third = (twins.submit(PROMPT, b"same") for _ in range(3))
    first.cancel()
    third.cancel()
    assert not engine.asked[0].cancelled()
    engine.asked[0].set_result(ANSWER)
    assert second.result(0) == ANSWER, "the first that still waits is the one it was computed for"


def test_the_last_line_that_is_cancelled_ends_the_computation(engine: HandEngine, twins: Twins) -> None:
    lines = [twins.submit(PROMPT, b"same") for _ in range(2)]
    for line in lines:
        line.cancel()
    assert engine.asked[0].cancelled()
    late = twins.submit(PROMPT, b"same")
    engine.asked[1].set_result(ANSWER)
    assert late.result(0) == ANSWER


def test_who_comes_while_the_last_is_cancelled_is_computed_anew() -> None:
    joined: list[Future[list[Completion]]] = []

    class Leaving(Future[list[Completion]]):
        def cancel(self) -> bool:
            joined.append(twins.submit(PROMPT, b"same"))
            return super().cancel()

    left, anew = Leaving(), Future[list[Completion]]()
    to_give: list[Future[list[Completion]]] = [left, anew]
    twins = Twins(lambda _: to_give.pop(0))
    twins.submit(PROMPT, b"same").cancel()
    anew.set_result(ANSWER)
    assert joined[0].result(0) == ANSWER


def test_a_failure_reaches_all_who_wait_and_is_not_remembered(engine: HandEngine, twins: Twins) -> None:
    lines = [twins.submit(PROMPT, b"same") for _ in range(2)]
    engine.asked[0].set_exception(ValueError("no"))
    for line in lines:
        with pytest.raises(ValueError, match="no"):
            line.result(0)
    again = twins.submit(PROMPT, b"same")
    engine.asked[1].set_result(ANSWER)
    assert again.result(0) == ANSWER


def test_a_computation_that_the_engine_cancels_leaves_nobody_waiting(engine: HandEngine, twins: Twins) -> None:
    lines = [twins.submit(PROMPT, b"same") for _ in range(2)]
    engine.asked[0].cancel()
    for line in lines:
        with pytest.raises(CancelledError):
            line.result(0)


def test_who_joins_while_the_engine_refuses_hears_of_it_too() -> None:
    joined: list[Future[list[Completion]]] = []

    def refuse(prompt: Prompt) -> Future[list[Completion]]:
        joined.append(shared.submit(prompt, b"same"))
        raise EngineFailed("gone")

    shared = Twins(refuse)
    with pytest.raises(EngineFailed):
        shared.submit(PROMPT, b"same")
    with pytest.raises(EngineFailed):
        joined[0].result(0)


def test_an_urgent_line_does_not_wait_for_one_that_is_less_so(engine: HandEngine, twins: Twins) -> None:
    slow, urgent, later = (twins.submit(replace(PROMPT, priority=priority), b"same") for priority in (100, 0, 100))
    assert len(engine.asked) == 2, "the third waits for the urgent one"
    engine.asked[1].set_result(ANSWER)
    assert (urgent.result(0), later.result(0)) == (ANSWER, KNOWN)
    assert not slow.done()
    engine.asked[0].set_result(ANSWER)
    assert slow.result(0) == ANSWER


def test_memory_is_bounded_and_the_answers_used_of_late_stay(engine: HandEngine) -> None:
    twins = Twins(engine.submit, remembered_tokens=100)  # three short answers

    def ask(alike: bytes) -> None:
        if not twins.submit(PROMPT, alike).done():
            engine.asked[-1].set_result(ANSWER)

    for alike in (b"a", b"b", b"c", b"a", b"d"):
        ask(alike)
    assert len(engine.asked) == 4
    ask(b"a")
    assert len(engine.asked) == 4, "a was used of late"
    ask(b"b")
    assert len(engine.asked) == 5, "b had to go"
    long = [replace(ANSWER[0], token_ids=tuple(range(101)))]
    twins.submit(PROMPT, b"long")
    engine.asked[-1].set_result(long)
    assert not twins.submit(PROMPT, b"long").done(), "what is longer than all the room is not kept"


def test_lines_differ_in_all_that_decides_an_answer_and_in_nothing_else() -> None:
    same = likeness("p", BODY, PROMPT)
    assert same is not None
    assert likeness("p", dict(reversed(BODY.items())), PROMPT) == same
    assert likeness("p", BODY | dict.fromkeys(UNHEARD, "x"), PROMPT) == same
    others = [
        likeness("other project", BODY, PROMPT),
        likeness("p", BODY | {"max_tokens": 3}, PROMPT),
        likeness("p", BODY | {"stop": "x"}, PROMPT),
        likeness("p", BODY | {"response_format": {"type": "json_object"}}, PROMPT),
        likeness("p", BODY | {"seed": 1}, PROMPT),
        likeness("p", BODY, replace(PROMPT, token_ids=[1, 2])),
    ]
    assert len({same, *others}) == 7


def test_a_line_with_noise_of_its_own_is_like_no_other() -> None:
    drawn = replace(PROMPT, sampling=Sampling(seed=5, temperature=1))
    assert likeness("p", BODY | {"temperature": 1}, drawn) is None
    assert likeness("p", BODY | {"temperature": 1, "seed": None}, drawn) is None
    assert likeness("p", BODY | {"temperature": 1, "seed": 0}, drawn) is not None
