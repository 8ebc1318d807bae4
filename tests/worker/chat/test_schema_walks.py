"""Whatever the schema and whatever the model prefers: an answer that ends is what was asked for."""

import json
from random import Random

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worker.chat.schemas import SCHEMAS, Schema
from tests.worker.chat.walking import walk
from worker.chat import grammar_text
from worker.chat.grammar import Grammars
from worker.chat.grammar_text import Place
from worker.model import ModelFolder, Tokenizer

PLACE = Place("schema", "invalid_json_schema", "response_format")
EXAMPLES = 300
WALKS = 2
TOKENS_MAX = 250


@pytest.fixture(scope="module")
def tokenizer(smollm2: ModelFolder) -> Tokenizer:
    return smollm2.tokenizer()


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


def test_every_walk_through_a_generated_schema_that_ends_validates(grammars: Grammars, tokenizer: Tokenizer) -> None:
    ended = []

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(SCHEMAS, st.integers(0, 2**32))
    def check(schema: Schema, seed: int) -> None:
        grammar = grammars.compile(grammar_text.of_json_schema(schema, PLACE), PLACE)
        validator = jsonschema_rs.validator_for(schema, validate_formats=True)
        random = Random(seed)
        for _ in range(WALKS):
            text = walk(grammar.watcher(), tokenizer, random, tokens_max=TOKENS_MAX)
            if text is not None:
                ended.append(text)
                validator.validate(json.loads(text))

    check()
    assert len(ended) > 0.9 * WALKS * EXAMPLES
    assert len(set(ended)) > 0.4 * WALKS * EXAMPLES


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        (grammar_text.of_regex(r"\d{2}/\d{2}|[a-c]+\."), r"[0-9]{2}/[0-9]{2}|[a-c]+\."),
        (grammar_text.of_choice(['yes "sir"', "no\n", "ja/nein", "größe"]), 'yes "sir"|no\n|ja/nein|größe'),
        ('start: greeting " " NAME\ngreeting: "hello" | "hi"\nNAME: /[A-Z][a-z]{1,5}/', "(hello|hi) [A-Z][a-z]{1,5}"),
    ],
)
def test_every_walk_through_another_grammar_matches_it(
    grammars: Grammars, tokenizer: Tokenizer, text: str, pattern: str
) -> None:
    grammar = grammars.compile(text, PLACE)
    walks = [walk(grammar.watcher(), tokenizer, Random(seed), tokens_max=TOKENS_MAX) for seed in range(50)]
    assert None not in walks
    assert len(set(walks)) > 3
    assert jsonschema_rs.is_valid({"items": {"pattern": f"^({pattern})$"}}, walks)
