"""An answer asked for as a JSON object is one, whatever the model prefers."""

import json

import numpy as np
import pytest

from tests.worker.chat.asking import ask, said
from worker.chat import Chat
from worker.engine import EngineSettings, FinishReason, NothingToSample, Watcher, load
from worker.model import ModelFolder

KNOBS = EngineSettings(threads=1, context_tokens_max=512, slots_max=16)
FORMAT = {"type": "json_object"}
PATIENCE_SECONDS = 120


def contents(chat: Chat, model: ModelFolder, **more: object) -> list[tuple[str, str]]:
    """Text and finish reason of each choice."""
    asked = ask(chat, messages=said("Describe a cat in JSON"), response_format=FORMAT, **more)
    with load(model, KNOBS) as engine:
        completions = engine.submit(asked.prompt).result(PATIENCE_SECONDS)
    choices = json.loads(chat.answer(asked, completions, created_at=1).body)["choices"]
    return [(choice["message"]["content"], choice["finish_reason"]) for choice in choices]


def watcher_of(chat: Chat, **more: object) -> Watcher:
    watch = ask(chat, messages=said("JSON please"), response_format=FORMAT, **more).prompt.watch
    assert watch is not None
    return watch(0)


def allowed(watcher: Watcher) -> set[int]:
    mask = watcher.mask()
    assert mask is not None
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def test_every_walk_through_the_allowed_tokens_that_ends_is_an_object(chat: Chat) -> None:
    """A model without any preference: each allowed token is as likely as the others."""
    random, ended = np.random.default_rng(5), set()
    for _ in range(200):
        watcher, ids = watcher_of(chat), list[int]()
        for _ in range(150):
            ids.append(int(random.choice(sorted(allowed(watcher)))))
            if not watcher.accept(ids[-1]):
                ended.add(chat._tokenizer.decode(ids))
                break
    assert len(ended) > 30
    assert all(isinstance(json.loads(text), dict) for text in ended)


def test_every_answer_of_a_real_model_that_ends_is_an_object(smollm2: ModelFolder) -> None:
    found = contents(Chat(smollm2, context_tokens=512, fingerprint="fp"), smollm2, n=8, max_tokens=120, temperature=1)
    ended = [text for text, reason in found if reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(text), dict) for text in ended)


def test_a_closed_object_ends_the_answer(chat: Chat) -> None:
    watcher = watcher_of(chat)
    ids = chat._tokenizer.encode_plain('{"a": [1, {}]}')
    assert [watcher.accept(index) for index in ids] == [True] * (len(ids) - 1) + [False]


def test_an_object_may_not_end_before_it_is_closed(chat: Chat, tiny: ModelFolder) -> None:
    watcher = watcher_of(chat)
    [eos] = tiny.spec.eos_token_ids
    for index in chat._tokenizer.encode_plain('{"a": 1'):
        assert index in allowed(watcher)
        watcher.accept(index)
    assert eos not in allowed(watcher)
    assert set(chat._tokenizer.encode_plain('},. "')) & allowed(watcher) == set(chat._tokenizer.encode_plain("},. "))


def test_blanks_are_bounded(chat: Chat) -> None:
    watcher = watcher_of(chat)
    [brace, blank] = chat._tokenizer.encode_plain("{ ")
    watcher.accept(brace)
    for _ in range(8):
        assert blank in allowed(watcher)
        watcher.accept(blank)
    assert blank not in allowed(watcher)


def test_a_token_outside_the_grammar_fails_the_prompt(chat: Chat) -> None:
    watcher = watcher_of(chat)
    with pytest.raises(NothingToSample):
        watcher.accept(chat._tokenizer.encode_plain("x")[0])


def test_a_stop_string_ends_an_object_too(chat: Chat) -> None:
    watcher = watcher_of(chat, stop="b")
    ids = chat._tokenizer.encode_plain('{"ab')
    assert [watcher.accept(index) for index in ids] == [True, True, True, False]
    watcher.finish()


def test_text_asks_for_no_grammar(chat: Chat) -> None:
    assert ask(chat, response_format={"type": "text"}).prompt.watch is None


def test_reasons_are_those_of_the_wire() -> None:
    assert {reason.value for reason in FinishReason} == {"stop", "length"}
