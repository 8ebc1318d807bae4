"""Grammars are compiled once, in bounded time, and cost nobody but their sender anything."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Timer
from time import monotonic, sleep
from typing import Any

import numpy as np
import orjson
import pytest
from llguidance import LLTokenizer

from jobs.contract.limits import GRAMMAR_CHARACTERS_MAX
from jobs.errors import BadRequest, Unavailable
from tests.worker.chat.walking import allowed
from worker.chat import Chat, grammar, grammar_text
from worker.chat.grammar import Grammars
from worker.chat.grammar_text import Place
from worker.model import ModelFolder, Tokenizer

PLACE = Place("schema for response_format 'cat'", "invalid_json_schema", "response_format")
PATIENCE_SECONDS = 10
"""A bomb that goes off takes minutes at least, and mostly all memory."""

Schema = dict[str, Any]


@pytest.fixture(scope="module")
def tokenizer(smollm2: ModelFolder) -> Tokenizer:
    return smollm2.tokenizer()


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """As the library wants it, which takes it longest to make."""
    return Grammars(tokenizer)._tokenizer


@pytest.fixture
def grammars(tokenizer: Tokenizer, vocabulary: LLTokenizer, monkeypatch: pytest.MonkeyPatch) -> Grammars:
    monkeypatch.setattr(grammar, "LLTokenizer", lambda *_, **__: vocabulary)
    return Grammars(tokenizer)


def compiled(grammars: Grammars, schema: Schema) -> grammar.Grammar:
    return grammars.compile(grammar_text.of_json_schema(schema, PLACE), PLACE)


def doubled(depth: int, double: Callable[[Schema], Schema]) -> Schema:
    """Each definition holds the next twice."""
    names = {f"x{n}": double({"$ref": f"#/$defs/x{n + 1}"}) for n in range(depth)}
    return {"$ref": "#/$defs/x0", "$defs": {**names, f"x{depth}": {"type": "null"}}}


def nested(depth: int) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED: dict[str, tuple[Schema, str]] = {
    "more than a schema may have": ({"enum": ["x" * GRAMMAR_CHARACTERS_MAX]}, "too large"),
    "four megabytes": ({"description": "x" * 4_000_000}, "too large"),
    "a hundred thousand values": ({"enum": [f"value {n}" for n in range(100_000)]}, "too large"),
    "properties without end": ({"properties": {f"p{n}": {} for n in range(9_000)}}, "not 'required'"),
    "patterns of names": ({"patternProperties": {f"^{n}x": {} for n in range(101)}}, "more than 100 patterns"),
    "nested a thousand times": (nested(400), "nested too deeply"),
    "nested as deep as Python goes": (nested(5_000), "nested too deeply"),
    "many remainders": ({"type": "integer", "multipleOf": 1_000_003}, "least common multiple"),
    "many remainders together": ({"allOf": [{"multipleOf": 9973}, {"multipleOf": 0.0007}]}, "least common multiple"),
    "doubled in place": (doubled(40, lambda x: {"allOf": [x, x]}), "written out"),
    "doubled as a choice": (
        doubled(40, lambda x: {"anyOf": [{"properties": {"a": x}}, {"properties": {"a": x}}]}),
        "wr",
    ),
    "every combination": (
        {"allOf": [{"anyOf": [{"properties": {f"{n}{m}": {}}} for m in "ab"]} for n in range(20)]},
        "too large",
    ),
    "itself and nothing else": ({"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}}, "no text satisfies it"),
    "another's schema": ({"$ref": "https://example.org/schema.json"}, "expected a path that begins with '#/'"),
    "a path to nowhere": ({"$ref": "#/$defs/x"}, "which is not there"),
    "keywords": ({"type": "array", "uniqueItems": True, "not": {}}, "not permitted: 'not', 'uniqueItems'"),
    "a format": ({"type": "string", "format": "colour"}, "Unknown format: colour"),
    "a pattern that looks around": ({"type": "string", "pattern": "(?=a)a"}, "look-around"),
    "a pattern that is none": ({"type": "string", "pattern": "(a"}, "unclosed group"),
    "bounds that leave nothing": ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater"),
    "signs without tokens": ({"const": "\U00071000"}, "no tokens for"),
}
SERVED: dict[str, Schema] = {
    "a pattern with two to the thirtieth states": {"type": "string", "pattern": "^(a|b)*a(a|b){30}$"},
    "a billion characters": {"type": "string", "minLength": 100_000, "maxLength": 1_000_000_000},
    "a million items": {"type": "array", "items": {"type": "string"}, "minItems": 1_000_000},
    "a long constant": {"const": "x" * 100_000},
    "thousands of values": {"enum": [f"value {n}" for n in range(5_000)]},
    "properties that may be left out": {"properties": {f"p{n}": {} for n in range(2_000)}},
    "properties": {"properties": {f"p{n}": {} for n in range(4_000)}, "required": [f"p{n}" for n in range(4_000)]},
    "a tree": {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_cannot_be_served_is_refused_in_time(grammars: Grammars, name: str) -> None:
    schema, reason = REFUSED[name]
    began = monotonic()
    with pytest.raises(BadRequest) as refused:
        compiled(grammars, schema)
    assert monotonic() - began < PATIENCE_SECONDS
    assert reason in refused.value.message
    assert refused.value.message.startswith("Invalid schema for response_format 'cat': ")
    assert len(refused.value.message) < 500
    assert (refused.value.code, refused.value.param) == ("invalid_json_schema", "response_format")


@pytest.mark.parametrize("name", SERVED)
def test_a_large_schema_is_served_in_time(grammars: Grammars, name: str) -> None:
    began = monotonic()
    watcher = compiled(grammars, SERVED[name]).watcher()
    for _ in range(3):
        watcher.accept(int(allowed(watcher)[0]))
    assert monotonic() - began < PATIENCE_SECONDS


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Compiling a grammar that speaks of a bomb lasts until this is set, and computes all the time or sleeps."""
    compile_now, event = Grammars._compile, Event()

    def compile_slowly(grammars: Grammars, text: str) -> grammar.Grammar | str:
        while "burning bomb" in text and not event.is_set():
            pass
        assert "sleeping bomb" not in text or event.wait(60)
        return compile_now(grammars, text)

    monkeypatch.setattr(Grammars, "_compile", compile_slowly)
    yield event
    event.set()


def test_what_takes_too_long_to_compile_costs_its_own_line_an_error(
    grammars: Grammars, held: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "COMPILE_SECONDS_MAX", 0.1)
    with pytest.raises(BadRequest, match="'cat': it takes more than 0 seconds to compile"):
        compiled(grammars, {"const": "burning bomb"})
    monkeypatch.setattr(grammar, "COMPILE_SECONDS_MAX", 60.0)
    compiled(grammars, {"const": 1})
    with pytest.raises(BadRequest, match="to compile"):
        compiled(grammars, {"const": "burning bomb"})
    assert not held.is_set()


def test_grammars_that_were_given_up_take_no_more_than_their_share(
    grammars: Grammars, held: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is served on, and once one has ended, what is new is served again."""
    known, others = compiled(grammars, {"const": 1}), set(threading.enumerate())
    monkeypatch.setattr(grammar, "COMPILE_SECONDS_MAX", 0.1)
    for number in range(grammar.GIVEN_UP_MAX):
        with pytest.raises(BadRequest, match="to compile"):
            compiled(grammars, {"const": f"burning bomb {number}"})
    with pytest.raises(Unavailable, match="No new grammar can be compiled now"):
        compiled(grammars, {"const": "burning bomb again"})
    burning = [thread for thread in threading.enumerate() if thread.name == "grammar" and thread not in others]
    priorities = [os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) for thread in burning]
    assert priorities == [19] * grammar.GIVEN_UP_MAX
    assert compiled(grammars, {"const": 1}) is known
    monkeypatch.setattr(grammar, "COMPILE_SECONDS_MAX", 60.0)
    held.set()
    for thread in burning:
        thread.join(PATIENCE_SECONDS)
    assert compiled(grammars, {"const": "burning bomb again"})


def test_a_machine_that_is_slow_refuses_nothing(
    grammars: Grammars, held: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock runs only while the grammar is worked on."""
    monkeypatch.setattr(grammar, "COMPILE_SECONDS_MAX", 0.5)
    monkeypatch.setattr(grammar, "GLANCE_SECONDS", 0.02)
    Timer(1.0, held.set).start()
    assert compiled(grammars, {"const": "sleeping bomb"})


def test_who_asks_for_a_grammar_that_is_there_waits_for_no_other(grammars: Grammars, held: Event) -> None:
    known = compiled(grammars, {"const": 1})
    with ThreadPoolExecutor(1) as another:
        bomb = another.submit(compiled, grammars, {"const": "sleeping bomb"})
        assert compiled(grammars, {"const": 1}) is known
        assert not bomb.done()
        held.set()
        assert bomb.result(PATIENCE_SECONDS)


def test_a_grammar_is_compiled_once_while_it_is_used(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "KEPT", 2)
    schemas = [{"const": n} for n in range(3)]
    first = compiled(grammars, schemas[0])
    compiled(grammars, schemas[1])
    assert compiled(grammars, schemas[0]) is first
    second = compiled(grammars, schemas[1])
    compiled(grammars, schemas[2])
    assert compiled(grammars, schemas[1]) is second
    assert compiled(grammars, schemas[0]) is not first


def test_what_was_refused_is_refused_again_without_being_compiled(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with pytest.raises(BadRequest, match="Unknown format"):
            compiled(grammars, {"format": "colour"})
        monkeypatch.setattr(grammar, "LLMatcher", None)


def test_only_the_tokens_of_the_one_possible_text_are_allowed(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Any of their beginnings would do too, and so would a step for each."""
    watcher = grammars.compile(grammar_text.of_choice(["the whole answer"]), PLACE).watcher()
    written = []
    while True:
        [index] = allowed(watcher)
        written.append(int(index))
        if not watcher.accept(written[-1]):
            break
    assert written == tokenizer.encode_plain("the whole answer")


def test_all_tokens_that_can_only_follow_are_told_at_once(grammars: Grammars, tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode_plain("the whole answer")
    watcher = grammars.compile(grammar_text.of_choice(["the whole answer", "a cat"]), PLACE).watcher()
    assert watcher.forced() == []
    for place, token_id in enumerate(whole[:-1]):
        assert watcher.accept(token_id)
        assert watcher.forced() == whole[place + 1 :]
    assert not watcher.accept(whole[-1])


def test_what_is_forced_is_spelt_on_from_whatever_was_written(grammars: Grammars, tokenizer: Tokenizer) -> None:
    watcher = grammars.compile(grammar_text.of_choice(["the whole answer", "a cat"]), PLACE).watcher()
    [the, whole, *_], [who] = tokenizer.encode_plain("the whole answer"), tokenizer.encode_plain(" who")
    assert who != whole
    watcher.accept(the)
    watcher.accept(who)
    rest = watcher.forced()
    assert tokenizer.decode(list(rest)) == "le answer"
    assert [watcher.accept(token_id) for token_id in rest] == [True] * (len(rest) - 1) + [False]


def test_a_hundred_thousand_signs_that_can_only_follow_are_told_in_time(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    """And not again after each of them."""
    watcher = compiled(grammars, {"const": "ab " * 33_000}).watcher()
    began = monotonic()
    for _ in range(1_000):
        watcher.accept(watcher.forced()[0] if watcher.forced() else int(allowed(watcher)[0]))
    assert len(watcher.forced()) > 10_000
    assert monotonic() - began < PATIENCE_SECONDS


def test_the_next_mask_is_found_while_the_engine_does_other_work(grammars: Grammars) -> None:
    watcher = compiled(grammars, {"type": "object"}).watcher()
    assert watcher.accept(int(allowed(watcher)[0]))
    deadline = monotonic() + PATIENCE_SECONDS
    while watcher._next._found is None:
        assert monotonic() < deadline
        sleep(0.001)
    assert len(allowed(watcher)) > 1


def test_who_needs_a_mask_waits_for_no_thread(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars._lookahead, "_work", lambda: None)
    watcher = compiled(grammars, {"type": "object"}).watcher()
    assert watcher.accept(int(allowed(watcher)[0]))
    assert watcher._next._found is None
    assert len(allowed(watcher)) > 1
    assert watcher.accept(int(allowed(watcher)[0]))


def test_masks_of_many_choices_are_those_that_each_has_alone(grammars: Grammars, tokenizer: Tokenizer) -> None:
    shared = compiled(grammars, {"type": "array", "items": {"enum": [10, 20, "a b"]}})
    crowd = [shared.watcher() for _ in range(60)]
    alone = shared.watcher()
    for token_id in tokenizer.encode_plain('[10,20,"a b",'):
        expected = alone.mask()
        for watcher in crowd:
            np.testing.assert_array_equal(watcher.mask(), expected)
        assert {watcher.accept(token_id) for watcher in [alone, *crowd]} == {True}


def test_watchers_of_one_grammar_do_not_see_each_other(grammars: Grammars, tokenizer: Tokenizer) -> None:
    shared = compiled(grammars, {"enum": [11, 22]})
    one, other = shared.watcher(), shared.watcher()
    [two] = tokenizer.encode_plain("2")
    one.accept(two)
    np.testing.assert_array_equal(allowed(one), [two])
    assert set(tokenizer.encode_plain("12")) <= set(allowed(other).tolist())


def test_a_users_options_for_the_grammar_library_are_not_heard(grammars: Grammars) -> None:
    with pytest.raises(BadRequest, match="not permitted: 'not'"):
        compiled(grammars, {"not": {}, "x-guidance": {"lenient": True}})


def test_a_schema_has_its_place_in_a_larger_grammar(grammars: Grammars, tokenizer: Tokenizer) -> None:
    rule = grammar_text.json_rule({"const": {"a": 1}}, PLACE, is_strict=True)
    watcher = grammars.compile(f'start: "<call>" body "</call>"\nbody: {rule}', PLACE).watcher()
    ids = tokenizer.encode_plain('<call>{"a": 1}</call>')
    assert [watcher.accept(index) for index in ids] == [True] * (len(ids) - 1) + [False]


def test_text_round_trips(chat: Chat) -> None:
    """orjson keeps the order of a schema's properties, in which they are asked for."""
    schema: Schema = {"properties": {name: {} for name in "zay"}}
    assert list(orjson.loads(grammar_text.json_rule(schema, PLACE, is_strict=True).split(" ", 1)[1])["properties"]) == [
        "z",
        "a",
        "y",
    ]
