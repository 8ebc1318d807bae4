"""docs/compatibility.md tells of every field there is, and what it tells is so."""

import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import orjson
import pytest
from openai.types.chat import completion_create_params
from pydantic import BaseModel

from jobs.contract import batch, chat, completion, formats, lines, messages, model, tools
from jobs.errors import BadRequest
from tests import tiny_model
from tests.worker.chat.asking import CREATED
from worker.chat import Chat

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
KINDS = {"yes", "extension", "ignored", "refused"}

TYPES: dict[str, type[BaseModel]] = {
    "The body": chat.ChatCompletion,
    "`messages[]`": messages.Message,
    "`messages[].content[]`, a part of text": messages.TextPart,
    "`tools[].function`": tools.Function,
    "`response_format.json_schema`": formats.JsonSchema,
    "`structured_outputs`": formats.StructuredOutputs,
    "`stream_options`": chat.StreamOptions,
    "The completion": completion.Completion,
    "`choices[]`": completion.Choice,
    "`choices[].message`": completion.AnsweredMessage,
    "`usage`": completion.CompletionUsage,
    "`usage.prompt_tokens_details`": completion.PromptTokensDetails,
    "`usage.completion_tokens_details`": completion.CompletionTokensDetails,
    "A chunk of a stream": completion.Chunk,
    "`choices[]` of a chunk": completion.ChunkChoice,
    "`choices[].delta`": completion.Delta,
    "What creates a batch": batch.CreateBatch,
    "`output_expires_after`": batch.OutputExpiry,
    "The batch": batch.Batch,
    "`errors.data[]`": batch.Fault,
    "`request_counts`": batch.RequestCounts,
    "The `usage` of a batch": batch.BatchUsage,
    "A model": model.Model,
}
OTHERS: dict[str, set[str]] = {
    "`response_format`": {"type", "json_schema"},
    "A line of the input file": {"custom_id", "method", "url", "body"},
    "A line of the output or error file": set(
        json.loads(lines.answered("batch_1", 1, "a", 200, "{}")),
    ),
}
REFUSED: dict[tuple[str, str], Any] = {  # a value of each
    ("The body", "audio"): {"voice": "alloy", "format": "wav"},
    ("The body", "moderation"): {"model": "x"},
    ("The body", "web_search_options"): {},
    ("The body", "verbosity"): "low",
    ("`messages[]`", "audio"): {"id": "audio_1"},
}
IGNORED: dict[tuple[str, str], Any] = {
    ("The body", "prediction"): {"type": "content", "content": [{"type": "text", "text": "x"}]},
    ("The body", "user"): "me",
    ("The body", "safety_identifier"): "me",
    ("The body", "prompt_cache_key"): "key",
    ("The body", "prompt_cache_retention"): "24h",
    ("The body", "prompt_cache_options"): {"mode": "implicit"},
    ("The body", "service_tier"): "flex",
    ("The body", "store"): True,
    ("The body", "metadata"): {"a": "b"},
    ("`messages[]`", "annotations"): [],
    ("`messages[].content[]`, a part of text", "prompt_cache_breakpoint"): {"mode": "explicit", "ttl": "30m"},
    ("`response_format.json_schema`", "description"): "A cat",
    ("`stream_options`", "include_obfuscation"): True,
}


def tables() -> dict[str, dict[str, str]]:
    """Of each heading with a table: what becomes of each field."""
    found: dict[str, dict[str, str]] = {}
    for section in re.split(r"^#+ ", PAGE.read_text("utf-8"), flags=re.MULTILINE):
        heading, _, text = section.partition("\n")
        if rows := re.findall(r"^\| `(\w+)` \| (\w+) \|", text, flags=re.MULTILINE):
            assert heading not in found
            found[heading] = dict(rows)
            assert len(rows) == len(found[heading]) == text.count("\n| `"), f"a row of {heading} cannot be read"
    return found


def of_kind(kind: str) -> list[tuple[str, str]]:
    return [(table, field) for table, rows in tables().items() for field, found in rows.items() if found == kind]


def body_with(table: str, field: str, value: Any) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
    match table:
        case "`messages[]`":
            return {"model": "tiny", "messages": [*turns, {"role": "assistant", "content": "x", field: value}]}
        case "`messages[].content[]`, a part of text":
            part = {"type": "text", "text": "Hi", field: value}
            return {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
        case "`response_format.json_schema`":
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, field: value}}
            return {"model": "tiny", "messages": turns, "response_format": form}
        case "`stream_options`":
            return {"model": "tiny", "messages": turns, "stream": True, "stream_options": {field: value}}
    return {"model": "tiny", "messages": turns, field: value}


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat(tiny_model.write(tmp_path_factory.mktemp("page") / "tiny"), context_tokens=512, fingerprint="fp")


@pytest.mark.parametrize("table", [*TYPES, *OTHERS])
def test_the_page_tells_of_every_field_and_of_no_other(table: str) -> None:
    found = tables()[table]
    if table in OTHERS:
        assert set(found) == OTHERS[table]
    else:
        assert set(found) == {field.alias or name for name, field in TYPES[table].model_fields.items()}
    assert set(found.values()) <= KINDS


def test_every_table_is_held_against_something() -> None:
    assert set(tables()) == {*TYPES, *OTHERS}


def test_there_is_a_value_for_all_that_is_refused_or_ignored() -> None:
    assert set(of_kind("refused")) == set(REFUSED)
    assert set(of_kind("ignored")) == set(IGNORED)


def test_an_extension_is_what_openais_client_does_not_know() -> None:
    known = get_type_hints(completion_create_params.CompletionCreateParamsStreaming)
    ours = {field for table, field in of_kind("extension") if table == "The body"}
    assert ours == set(tables()["The body"]) - set(known)


@pytest.mark.parametrize(("table", "field"), REFUSED)
def test_what_is_refused_on_the_page_is_refused_by_name(table: str, field: str) -> None:
    body = body_with(table, field, REFUSED[table, field])
    with pytest.raises(BadRequest) as refused:
        chat.read(orjson.loads(orjson.dumps(body)))
    assert refused.value.code in ("unsupported_parameter", "unsupported_value")
    assert str(refused.value.param).endswith(field)


@pytest.mark.parametrize(("table", "field"), IGNORED)
def test_what_is_ignored_on_the_page_is_accepted_and_changes_nothing(table: str, field: str, speaker: Chat) -> None:
    body = body_with(table, field, IGNORED[table, field])
    chat.read(orjson.loads(orjson.dumps(body)))
    without = body_with(table, field, None)
    asked, plain = (speaker.prompt(one, seed_text="s", created=CREATED).prompt for one in (body, without))
    assert (asked.token_ids, asked.sampling, asked.tokens_max) == (plain.token_ids, plain.sampling, plain.tokens_max)
