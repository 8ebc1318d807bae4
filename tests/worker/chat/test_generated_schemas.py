"""Schemas drawn at random, answered by a real model all at once: every answer that comes to its own end is one of the
schema's. `make schemas` tries 500 of them.
"""

import json
import os
from collections.abc import Iterator

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.worker.chat.asking import ask, said
from tests.worker.chat.schemas import SCHEMAS, Schema
from worker.chat import Asked, Chat
from worker.engine import Completion, Engine, EngineSettings, load
from worker.model import ModelFolder

COUNT = int(os.environ.get("SCHEMAS", "32"))
ANSWER_TOKENS = 150
CONTEXT_TOKENS = 512
ENDED_SHARE_MIN = 0.5
PATIENCE_SECONDS = 3600
KNOBS = EngineSettings(threads=2, context_tokens_max=CONTEXT_TOKENS, slots_max=32)


def drawn(count: int) -> list[Schema]:
    """So many different schemas, the same each time."""
    found: dict[str, Schema] = {}

    @seed(5)
    @settings(
        max_examples=2 * count,
        phases=[Phase.generate],
        derandomize=False,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(SCHEMAS)
    def collect(schema: Schema) -> None:
        found.setdefault(json.dumps(schema), schema)

    collect()
    assert len(found) >= count
    return list(found.values())[:count]


@pytest.fixture(scope="module")
def engine(smollm2: ModelFolder) -> Iterator[Engine]:
    with load(smollm2, KNOBS) as engine:
        yield engine


def question(chat: Chat, place: int, schema: Schema) -> Asked:
    form = {"type": "json_schema", "json_schema": {"name": f"schema_{place}", "schema": schema}}
    told = said("Make something up, in JSON, and keep it short.")
    return ask(chat, f"batch:{place}", messages=told, response_format=form, max_tokens=ANSWER_TOKENS, temperature=1)


def text_of(chat: Chat, asked: Asked, completions: list[Completion]) -> str | None:
    """What a choice says that ended by itself. Raises Missed where it is not what was asked for."""
    [choice] = json.loads(chat.answer(asked, completions, created_at=1).body)["choices"]
    return choice["message"]["content"] if choice["finish_reason"] == "stop" else None


def test_every_answer_to_a_generated_schema_that_ends_parses_and_validates(
    smollm2: ModelFolder, engine: Engine
) -> None:
    chat = Chat(smollm2, context_tokens=CONTEXT_TOKENS, fingerprint="fp")
    schemas = drawn(COUNT)
    asked = [question(chat, place, schema) for place, schema in enumerate(schemas)]
    futures = [engine.submit(one.prompt) for one in asked]
    answers = [future.result(PATIENCE_SECONDS) for future in futures]
    texts = [text_of(chat, one, answer) for one, answer in zip(asked, answers, strict=True)]
    ended = {place: text for place, text in enumerate(texts) if text is not None}
    for place, text in ended.items():
        validator = jsonschema_rs.validator_for(schemas[place], validate_formats=True)
        validator.validate(json.loads(text))
    print(f"{len(ended)} of {COUNT} answers ended, and all of them validate; {len(set(ended.values()))} differ")
    assert len(ended) > ENDED_SHARE_MIN * COUNT
