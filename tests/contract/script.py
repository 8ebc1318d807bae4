"""What a user of the `openai` package does, from the first upload to the last error: one script for every release.

    python script.py URL KEY sync|async SECRET DELIVERY

Runs in an environment that holds `openai` and nothing of ours. A client of either kind is driven by the same
lines: `done` awaits where there is something to await. Prints the name of each part once it is through.
"""

import asyncio
import hashlib
import inspect
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import openai

ENDPOINT = "/v1/chat/completions"
WINDOW = {"endpoint": ENDPOINT, "completion_window": "24h"}
MESSAGES = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Say größe, slowly."}]
SAID = "SAY GRÖSSE, SLOWLY."
DEADLINE_SECONDS = 30


async def done(value):
    """What a call of either client comes to."""
    return await value if inspect.isawaitable(value) else value


async def all_of(pages):
    """Everything that a list, a stream or a page of either client yields."""
    pages = await done(pages) if not hasattr(pages, "__aiter__") else pages
    if hasattr(pages, "__aiter__"):
        return [one async for one in pages]
    return list(pages)


async def refusal(call, kind, *, code, param):
    """The error that a call must end in."""
    found = None
    try:
        await done(call())
    except openai.APIStatusError as error:
        found = error
    assert found is not None, f"not refused: {kind.__name__} {code} {param}"
    assert type(found) is kind, (type(found), str(found))
    assert (found.code, found.param) == (code, param), (found.code, found.param, str(found))
    assert (found.request_id or "").startswith("req_"), found.request_id
    assert set(found.body) == {"message", "type", "param", "code"}, found.body


def line(custom_id, content):
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body})


def jsonl(*contents):
    lines = [line(str(place), content) for place, content in enumerate(contents)]
    return ("\n".join(lines) + "\n").encode()


async def ended(client, batch_id):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        batch = await done(client.batches.retrieve(batch_id))
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        assert time.monotonic() < deadline, batch
        await asyncio.sleep(0.02)


async def files(client):
    content = jsonl("a", "b")
    made = await done(
        client.files.create(
            file=("in put.jsonl", content), purpose="batch",
            extra_body={"expires_after[anchor]": "created_at", "expires_after[seconds]": 3600},
        )
    )  # fmt: skip
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(content), "in put.jsonl", "batch")
    assert made.expires_at == made.created_at + 3600
    assert (await done(client.files.retrieve(made.id))).id == made.id
    waited = await done(client.files.wait_for_processing(made.id))
    assert waited.status == "processed"
    others = [(await done(client.files.create(file=io.BytesIO(b"x"), purpose="user_data"))).id for _ in range(4)]
    found = await all_of(client.files.list(purpose="user_data", limit=2, order="asc"))
    assert [file.id for file in found] == others
    assert (await done(client.files.delete(others[0]))).deleted is True
    missing = others[0]
    await refusal(lambda: client.files.retrieve(missing), openai.NotFoundError, code=None, param="id")
    await refusal(
        lambda: client.files.list(limit=0), openai.BadRequestError, code="integer_below_min_value", param="limit"
    )
    await refusal(
        lambda: client.files.create(file=("a.csv", content), purpose="batch"),
        openai.BadRequestError, code=None, param=None,
    )  # fmt: skip


async def content(client):
    """Every way to a file's bytes."""
    stored = jsonl("U+2028 \u2028 is no newline", "b")
    file_id = (await done(client.files.create(file=("in.jsonl", stored), purpose="batch"))).id
    answer = await done(client.files.content(file_id))
    assert answer.content == stored
    assert answer.text == stored.decode()
    assert await done(answer.aread() if hasattr(answer, "aread") else answer.read()) == stored
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "written"
        answer.write_to_file(written)
        assert written.read_bytes() == stored
    assert b"".join(answer.iter_bytes(chunk_size=7)) == stored
    one = (await done(client.files.create(file=("one.jsonl", b'{"a": 1}'), purpose="batch"))).id
    assert (await done(client.files.content(one))).json() == {"a": 1}
    streaming = client.files.with_streaming_response.content(file_id)
    if hasattr(streaming, "__aenter__"):
        async with streaming as response:
            assert b"".join([part async for part in response.iter_bytes()]) == stored
        async with client.files.with_streaming_response.content(file_id) as response:
            assert "".join([part + "\n" async for part in response.iter_lines()])
    else:
        with streaming as response:
            assert b"".join(response.iter_bytes()) == stored
        with client.files.with_streaming_response.content(file_id) as response:
            assert list(response.iter_lines())
    part = await done(client.files.content(file_id, extra_headers={"Range": "bytes=2-4"}))
    assert (part.response.status_code, part.content) == (206, stored[2:5])
    await refusal(
        lambda: client.files.content(file_id, extra_headers={"Range": "bytes=999999-"}),
        openai.APIStatusError, code="invalid_range", param="Range",
    )  # fmt: skip


async def uploads(client):
    whole = jsonl(*"abcdefgh")
    sizes = {"bytes": len(whole), "filename": "parts.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}
    upload = await done(client.uploads.create(**sizes))
    assert (upload.object, upload.status, upload.expires_at) == ("upload", "pending", upload.created_at + 3600)
    second = await done(client.uploads.parts.create(upload.id, data=whole[100:]))
    first = await done(client.uploads.parts.create(upload.id, data=whole[:100]))
    assert (first.object, first.upload_id) == ("upload.part", upload.id)
    wrong = {"part_ids": [second.id, first.id], "md5": hashlib.md5(whole).hexdigest()}
    await refusal(
        lambda: client.uploads.complete(upload.id, **wrong), openai.BadRequestError, code="invalid_value", param="md5"
    )
    right = {**wrong, "part_ids": [first.id, second.id]}
    for _ in range(2):  # a repeated call is no error
        complete = await done(client.uploads.complete(upload.id, **right))
        assert (complete.status, complete.file.bytes) == ("completed", len(whole))
    assert (await done(client.files.content(complete.file.id))).content == whole
    given_up = await done(client.uploads.create(**sizes))
    assert (await done(client.uploads.cancel(given_up.id))).status == "cancelled"
    await refusal(
        lambda: client.uploads.complete(given_up.id, part_ids=["part_x"]),
        openai.ConflictError, code=None, param=None,
    )  # fmt: skip
    if hasattr(client.uploads, "upload_file_chunked"):
        chunked = await done(
            client.uploads.upload_file_chunked(
                file=whole, filename="c.jsonl", bytes=len(whole), mime_type="application/jsonl", purpose="batch",
                part_size=64,
            )
        )  # fmt: skip
        assert (await done(client.files.content(chunked.file.id))).content == whole


async def batches(client):
    file_id = (await done(client.files.create(file=("in.jsonl", jsonl("one", "fail", "drei")), purpose="batch"))).id
    made = await done(client.batches.create(input_file_id=file_id, metadata={"a": "b"}, **WINDOW))
    assert (made.object, made.endpoint, made.input_file_id) == ("batch", ENDPOINT, file_id)
    assert made.id.startswith("batch_")
    batch = await ended(client, made.id)
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 2, 1)
    assert batch.metadata == {"a": "b"}
    assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at, batch.expires_at)
    told = batch.model_dump()
    assert told["usage"]["total_tokens"] == 10
    assert told["model"] == "tiny"
    output = [json.loads(one) for one in (await done(client.files.content(batch.output_file_id))).text.splitlines()]
    texts = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in output}
    assert texts == {"0": "ONE", "2": "DREI"}
    (failed,) = (await done(client.files.content(batch.error_file_id))).text.splitlines()
    assert json.loads(failed)["response"]["body"]["error"]["code"] == "scripted"
    await refusal(lambda: client.batches.cancel(batch.id), openai.ConflictError, code=None, param=None)


async def batch_lists(client):
    made = [(await done(client.batches.create(input_file_id="file-none", **WINDOW))).id for _ in range(5)]
    listed = await all_of(client.batches.list(limit=2))
    assert [batch.id for batch in listed][:5] == made[::-1]
    assert len({batch.id for batch in listed}) == len(listed)
    page = await done(client.batches.list(limit=2))
    assert (page.has_more, len(page.data)) == (True, 2)
    failed = await ended(client, made[0])
    assert (failed.status, failed.errors.data[0].code, failed.output_file_id) == ("failed", "invalid_request", None)
    await refusal(lambda: client.batches.list(after="batch_none"), openai.NotFoundError, code=None, param=None)
    await refusal(
        lambda: client.batches.list(limit=101), openai.BadRequestError, code="integer_above_max_value", param="limit"
    )
    await refusal(lambda: client.batches.retrieve("batch_none"), openai.NotFoundError, code=None, param=None)


async def cancelling(client):
    file_id = (await done(client.files.create(file=("in.jsonl", jsonl("one", "two", "wait")), purpose="batch"))).id
    made = await done(client.batches.create(input_file_id=file_id, **WINDOW))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (await done(client.batches.retrieve(made.id))).request_counts.completed < 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert (await done(client.batches.cancel(made.id))).status in ("cancelling", "cancelled")
    batch = await ended(client, made.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("cancelled", 2, 1)
    (unanswered,) = (await done(client.files.content(batch.error_file_id))).text.splitlines()
    assert json.loads(unanswered)["error"]["code"] == "batch_cancelled"
    assert (await done(client.batches.cancel(made.id))).status == "cancelled"


async def invalid(client):
    """All faults of a file, with their lines."""
    broken = line("a", "x").encode() + b"\n{\n" + line("a", "x").encode() + b"\n"
    file_id = (await done(client.files.create(file=("in.jsonl", broken), purpose="batch"))).id
    batch = await ended(client, (await done(client.batches.create(input_file_id=file_id, **WINDOW))).id)
    found = [(fault.line, fault.code, fault.param) for fault in batch.errors.data]
    assert batch.status == "failed"
    assert found == [(2, "invalid_json_line", None), (3, "duplicate_custom_id", "custom_id")], found


async def orders(client):
    """Orders that are refused before there is a batch."""
    for change, code, param in (
        ({"endpoint": "/v1/invalid"}, "invalid_value", "endpoint"),
        ({"completion_window": "soon"}, "invalid_value", "completion_window"),
        ({"metadata": {"tags": []}}, "invalid_type", "metadata.tags"),
        ({"input_file_id": openai.NOT_GIVEN}, "missing_required_parameter", "input_file_id"),
    ):
        order = {"input_file_id": "file-x", **WINDOW, **change}
        given = {name: value for name, value in order.items() if value is not openai.NOT_GIVEN}
        missing = {"input_file_id": openai.NOT_GIVEN} if "input_file_id" not in given else {}
        await refusal(
            lambda given={**given, **missing}: client.batches.create(**given),
            openai.BadRequestError, code=code, param=param,
        )  # fmt: skip


async def models(client):
    assert [model.id for model in await all_of(client.models.list())] == ["org/tiny", "tiny"]
    assert (await done(client.models.retrieve("org/tiny"))).id == "org/tiny"
    await refusal(
        lambda: client.models.retrieve("org/none"), openai.NotFoundError, code="model_not_found", param="model"
    )


async def chat(client):
    asked = {"model": "tiny", "messages": MESSAGES, "temperature": 0.8}
    response = await done(client.chat.completions.create(**asked))
    assert response.choices[0].message.content == SAID
    assert (response.object, response.choices[0].finish_reason) == ("chat.completion", "stop")
    assert response.usage.total_tokens == 5
    for change, kind, code, param in (
        ({"model": "none"}, openai.NotFoundError, "model_not_found", "model"),
        ({"messages": []}, openai.BadRequestError, "empty_array", "messages"),
        ({"temperature": 200}, openai.BadRequestError, "decimal_above_max_value", "temperature"),
        ({"n": "1"}, openai.BadRequestError, "invalid_type", "n"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "unknown_parameter", "temprature"),
        ({"messages": [{"role": "user", "content": "fail"}]}, openai.BadRequestError, "scripted", "messages"),
    ):
        await refusal(
            lambda change=change: client.chat.completions.create(**{**asked, **change}), kind, code=code, param=param
        )


async def chat_streamed(client):
    for said in (SAID.lower(), "cut"):  # of the second, most pieces never arrive
        asked = {"model": "tiny", "messages": [{"role": "user", "content": said}], "n": 2, "stream": True}
        chunks = await all_of(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
        *spoken, last = chunks
        assert (last.choices, last.usage.total_tokens) == ([], 5)
        for index in range(2):
            own = [chunk.choices[0] for chunk in spoken if chunk.choices[0].index == index]
            assert own[0].delta.role == "assistant"
            assert "".join(choice.delta.content or "" for choice in own) == said.upper()
            assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["stop"]
        assert all(chunk.usage is None for chunk in spoken)
    without = await all_of(client.chat.completions.create(**asked))
    assert without[-1].choices[0].finish_reason == "stop"
    failing = {"model": "tiny", "messages": [{"role": "user", "content": "fail"}], "stream": True}
    await refusal(
        lambda: client.chat.completions.create(**failing), openai.BadRequestError, code="scripted", param="messages"
    )


async def keys(client):
    other = client.with_options(api_key="gm_abc_def")
    await refusal(lambda: other.models.list(), openai.AuthenticationError, code="invalid_api_key", param=None)


async def webhooks(client):
    """A delivery as the server signs it, unwrapped by the client."""
    if not hasattr(client, "webhooks"):
        return
    secret, delivery = sys.argv[4], json.loads(sys.argv[5])
    event = client.webhooks.unwrap(delivery["body"], delivery["headers"], secret=secret)
    assert (event.type, event.data.id) == ("batch.completed", "batch_x")
    try:
        client.webhooks.unwrap(delivery["body"] + " ", delivery["headers"], secret=secret)
    except openai.InvalidWebhookSignatureError:
        return
    raise AssertionError("a changed delivery was accepted")


PARTS = (
    files, content, uploads, batches, batch_lists, cancelling, invalid, orders, models, chat, chat_streamed, keys,
    webhooks,
)  # fmt: skip


async def main() -> None:
    make = {"sync": openai.OpenAI, "async": openai.AsyncOpenAI}[sys.argv[3]]
    client = make(base_url=f"{sys.argv[1]}/v1", api_key=sys.argv[2], timeout=DEADLINE_SECONDS)
    print(openai.__version__, flush=True)
    for part in PARTS:
        await part(client)
        print(part.__name__, flush=True)
    await done(client.close())


if __name__ == "__main__":
    asyncio.run(main())
