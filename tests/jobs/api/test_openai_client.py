"""The contract, as the unchanged `openai` client meets it."""

import openai
import pytest

from tests.jobs.api.conftest import FILE_SIZE_MAX, RecordedHints

LINES = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
ORDER = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


def upload(sdk: openai.OpenAI, content: bytes = LINES, name: str = "in.jsonl") -> str:
    return sdk.files.create(file=(name, content), purpose="batch").id


def test_an_uploaded_file_comes_back_byte_for_byte(sdk):
    content = LINES * 20_000  # more than one part
    made = sdk.files.create(file=("größe.jsonl", content), purpose="batch")
    assert (made.bytes, made.filename, made.status, made.purpose) == (
        len(content), "größe.jsonl", "processed", "batch",
    )  # fmt: skip
    assert made.expires_at == made.created_at + 30 * 86_400
    assert sdk.files.content(made.id).content == content
    assert sdk.files.retrieve(made.id) == made


def test_a_file_lives_as_long_as_was_asked(sdk):
    made = sdk.files.create(
        file=("in.jsonl", LINES), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600


def test_a_deleted_file_is_gone(sdk):
    file_id = upload(sdk)
    assert sdk.files.delete(file_id).deleted
    with pytest.raises(openai.NotFoundError) as refusal:
        sdk.files.retrieve(file_id)
    assert refusal.value.message.endswith(f"No such File object: {file_id}")
    assert (refusal.value.param, refusal.value.code) == ("id", None)
    assert refusal.value.request_id.startswith("req_")


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_paging_through_files_meets_each_once_and_ends(sdk, order):
    made = [upload(sdk) for _ in range(5)]
    found = [file.id for file in sdk.files.list(limit=2, order=order)]
    assert found == (made if order == "asc" else made[::-1])


def test_paging_through_batches_meets_each_once_and_ends(sdk):
    made = [sdk.batches.create(input_file_id="file-x", **ORDER).id for _ in range(5)]
    assert [batch.id for batch in sdk.batches.list(limit=2)] == made[::-1]


def test_a_batch_is_made_read_and_cancelled(sdk, hints: RecordedHints):
    made = sdk.batches.create(input_file_id=upload(sdk), metadata={"a": "b"}, **ORDER)
    assert (made.status, made.metadata, made.expires_at) == ("validating", {"a": "b"}, made.created_at + 86_400)
    assert made.request_counts.total == made.usage.total_tokens == 0
    assert sdk.batches.retrieve(made.id) == made
    assert sdk.batches.cancel(made.id).status == "cancelling"
    assert [task for task, _ in hints.sent] == ["ingest", "finalize"]


def test_models_are_listed_and_found(sdk):
    assert [model.id for model in sdk.models.list()] == ["tiny"]
    assert sdk.models.retrieve("tiny").object == "model"


def test_a_wrong_key_is_an_authentication_error(sdk):
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        sdk.with_options(api_key="gm_abc_def").models.list()


def test_a_bad_order_is_a_bad_request_with_code_and_param(sdk):
    with pytest.raises(openai.BadRequestError) as refusal:
        sdk.batches.create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h")
    assert (refusal.value.code, refusal.value.param) == ("invalid_value", "endpoint")


@pytest.mark.parametrize("excess", [1, 40 * 1024 * 1024])
def test_a_file_over_the_limit_is_refused_and_not_a_broken_connection(sdk, excess):
    with pytest.raises(openai.APIStatusError) as refusal:
        upload(sdk, b"x" * (FILE_SIZE_MAX + excess))
    assert refusal.value.status_code == 413
    assert not list(sdk.files.list())
