"""Filtered lines from the ledger to the `openai` client: the pump with a real engine over a tiny model."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from uuid import UUID

import openai
import orjson
import pytest
from fastapi import FastAPI
from openai.types.chat import ChatCompletion
from sqlalchemy import Engine as Ledger

from gristmill.embedded import Addresses
from jobs import export
from jobs.api.app import create_app
from jobs.settings import Settings
from jobs.streams import Publisher
from tests import tiny_model
from tests.jobs import making
from tests.jobs.api.conftest import RecordedHints
from tests.worker.moderation import tiny_classifier, tiny_guard
from tests.worker.pumping import pump_of
from tests.worker.test_pump import bodies
from tests.worker.test_reading_along import read_along
from worker import engine, moderation
from worker.engine import EngineFailed
from worker.model import ModelFolder
from worker.moderation import ContentFilter
from worker.moderation.conversation import Conversation, Speaker
from worker.moderation.judge import Judge
from worker.pump import Pump

FORCED = {
    "max_tokens": 4,
    "temperature": 0,
    "logit_bias": {str(3 + list(tiny_model.byte_level.BYTE_OF_SIGN).index("b")): 100},
}
"""What makes the tiny model write `bbbb`."""


class Scripted:
    """Judges as a function of the text says, and counts what it is asked."""

    def __init__(self, judge: Callable[[Conversation], set[str]]) -> None:
        self._judge = judge
        self.asked: list[str] = []

    def judge(self, said: Conversation) -> Future[frozenset[str]]:
        self.asked.append(said.text)
        verdict: Future[frozenset[str]] = Future()
        verdict.set_result(frozenset(self._judge(said)))
        return verdict


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model.write(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def inference(tiny: ModelFolder) -> Iterator[engine.Engine]:
    with engine.load(tiny, engine.EngineSettings(threads=1, slots_max=8)) as running:
        yield running


@pytest.fixture
def owner(ledger: Ledger) -> UUID:
    return making.worker(ledger)


@pytest.fixture
def pump(ledger: Ledger, tiny: ModelFolder, inference: engine.Engine) -> Callable[..., Pump]:
    def make(chosen: ContentFilter | None, publisher: Publisher | None = None) -> Pump:
        return pump_of(ledger, inference, tiny, publisher=publisher, content_filter=chosen)

    return make


def judged_by(*judges: Judge) -> ContentFilter:
    return ContentFilter(judges)


def choices(ledger: Ledger) -> list[dict[str, object]]:
    """Of the only line's answer."""
    (body,) = bodies(ledger).values()
    return body["choices"]  # type: ignore[return-value]


def error(ledger: Ledger) -> dict[str, object]:
    (body,) = bodies(ledger).values()
    return body["error"]  # type: ignore[return-value]


def settings_of(kind: str, folder: Path) -> Settings:
    """Each finds `bomb` or `make bomb`, or everything; none finds a greeting but the guard."""
    (folder / "words").write_text("bomb\n[letters]\nbbbb\n")
    tiny_classifier.write(folder / "pair", problem_type="multi_label_classification")
    tiny_guard.write(folder / "models" / "guard", "Yes")
    chosen = {
        "words": {"filter_words": folder / "words"},
        "classifier": {"filter_classifier": folder / "pair", "filter_labels": "danger"},
        "guard": {"filter_guard": "guard"},
    }[kind]
    return Settings(data_dir=folder, threads=1, sequence_tokens=512, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "categories"), [("words", "custom_blocklists"), ("classifier", "danger"), ("guard", "harm")]
)
def test_a_filtered_prompt_is_that_lines_error_and_is_never_computed(
    ledger: Ledger,
    pump: Callable[..., Pump],
    inference: engine.Engine,
    owner: UUID,
    sdk: openai.OpenAI,
    tmp_path: Path,
    kind: str,
    categories: str,
) -> None:
    batch = making.ingest(ledger, [making.line("bad", content="make bomb", max_tokens=4)])
    with moderation.opened(settings_of(kind, tmp_path)) as chosen:
        pump(chosen).run(lambda: owner)
    export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS)
    ended = sdk.batches.retrieve(batch.public_id)
    assert ended.request_counts is not None
    assert (ended.status, ended.request_counts.failed, ended.output_file_id) == ("completed", 1, None)
    assert inference.progress.output_tokens == 0
    assert ended.error_file_id is not None
    (line,) = map(orjson.loads, sdk.files.content(ended.error_file_id).iter_lines())
    assert (line["custom_id"], line["response"]["status_code"]) == ("bad", 400)
    assert line["response"]["body"]["error"] == {
        "message": "The response was filtered due to the prompt triggering the content filter of this server: "
        f"{categories}. Please modify your prompt and retry.",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "content_filter",
    }


def test_a_filtered_answer_is_a_completion_without_content(
    ledger: Ledger, pump: Callable[..., Pump], owner: UUID, sdk: openai.OpenAI, tmp_path: Path
) -> None:
    lines = [
        making.line("bad", content="Hi", n=2, logprobs=True, top_logprobs=2, **FORCED),
        making.line("good", content="Hi", max_tokens=4, temperature=0),
    ]
    batch = making.ingest(ledger, lines)
    with moderation.opened(settings_of("words", tmp_path)) as chosen:
        pump(chosen).run(lambda: owner)
    export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS)
    ended = sdk.batches.retrieve(batch.public_id)
    assert ended.request_counts is not None
    assert (ended.request_counts.completed, ended.error_file_id) == (2, None)
    assert ended.output_file_id is not None
    found = {
        line["custom_id"]: line for line in map(orjson.loads, sdk.files.content(ended.output_file_id).iter_lines())
    }
    bad, good = (ChatCompletion.model_validate(found[name]["response"]["body"]) for name in ("bad", "good"))
    assert b"bbbb" not in orjson.dumps(found["bad"])
    for choice in bad.choices:
        assert (choice.finish_reason, choice.message.content, choice.logprobs) == ("content_filter", None, None)
        assert (choice.message.role, choice.message.refusal, choice.message.tool_calls) == ("assistant", None, None)
        assert choice.model_extra == {"content_filter_results": {"letters": {"filtered": True, "detected": True}}}
    assert bad.usage is not None
    assert bad.usage.completion_tokens == 8, "what was written is counted, told or not"
    assert good.choices[0].finish_reason in ("length", "stop")
    assert good.choices[0].message.content is not None
    assert not good.choices[0].model_extra


def test_of_several_choices_only_those_that_are_filtered_are_withheld(
    ledger: Ledger, pump: Callable[..., Pump], owner: UUID
) -> None:
    seen: list[str] = []

    def second(said: Conversation) -> set[str]:
        if said.turns[-1].speaker is Speaker.AGENT:
            seen.append(said.text)
        return {"violence"} if len(seen) == 2 else set()

    making.ingest(ledger, [making.line("r", content="Hi", n=3, max_tokens=6, temperature=1, ignore_eos=True)])
    pump(judged_by(Scripted(second))).run(lambda: owner)
    found = choices(ledger)
    assert [choice["finish_reason"] for choice in found] == ["length", "content_filter", "length"]
    assert [choice["message"]["content"] for choice in found] == [seen[0], None, seen[2]]  # type: ignore[index]


def test_lines_alike_are_computed_once_and_judged_each(
    ledger: Ledger, pump: Callable[..., Pump], inference: engine.Engine, owner: UUID
) -> None:
    judge = Scripted(lambda said: {"letters"} if "bbbb" in said.text else set())
    making.ingest(ledger, [making.line(f"r{number}", content="Same", **FORCED) for number in range(5)])
    pump(judged_by(judge)).run(lambda: owner)
    reasons = [body["choices"][0]["finish_reason"] for body in bodies(ledger).values()]  # type: ignore[index]
    assert reasons == ["content_filter"] * 5
    assert inference.progress.output_tokens == 4
    assert (judge.asked.count("Same"), judge.asked.count("bbbb")) == (5, 5)


def fails_at(text: str, error: BaseException) -> Scripted:
    def judge(said: Conversation) -> set[str]:
        if text in said.text:
            raise error
        return set()

    return Scripted(judge)


class FailsLater(Scripted):
    """As a judge whose work is done elsewhere."""

    def judge(self, said: Conversation) -> Future[frozenset[str]]:
        try:
            return super().judge(said)
        except Exception as error:  # noqa: BLE001
            verdict: Future[frozenset[str]] = Future()
            verdict.set_exception(error)
            return verdict


@pytest.mark.parametrize("at", ["Hello", "bbbb"])
@pytest.mark.parametrize("kind", [Scripted, FailsLater])
def test_what_cannot_be_judged_is_an_error_and_costs_the_other_lines_nothing(
    ledger: Ledger, pump: Callable[..., Pump], owner: UUID, at: str, kind: type[Scripted]
) -> None:
    judge = kind(fails_at(at, ValueError("broken"))._judge)
    lines = [making.line("r1", content="Hello", **FORCED), making.line("r2", content="Other", max_tokens=2)]
    making.ingest(ledger, lines)
    pump(judged_by(judge)).run(lambda: owner)
    found = bodies(ledger)
    assert found[1]["error"]["code"] == "server_error"  # type: ignore[index]
    assert b"bbbb" not in orjson.dumps(found[1])
    assert found[2]["choices"][0]["finish_reason"] in ("length", "stop")  # type: ignore[index]
    assert sum(at in text for text in judge.asked) == 3, "it is tried three times"


def test_a_prompt_that_could_not_be_judged_is_judged_again_before_it_is_asked(
    ledger: Ledger, pump: Callable[..., Pump], inference: engine.Engine, owner: UUID
) -> None:
    asked: list[str] = []

    def judge(said: Conversation) -> set[str]:
        asked.append(said.text)
        if len(asked) == 1:
            raise ValueError("not now")
        return {"hate"}

    making.ingest(ledger, [making.line("r", content="Hello", max_tokens=2)])
    pump(judged_by(Scripted(judge))).run(lambda: owner)
    assert error(ledger)["code"] == "content_filter"
    assert inference.progress.output_tokens == 0


def test_a_guards_engine_that_has_died_leaves_the_lines_to_another_worker(
    ledger: Ledger, pump: Callable[..., Pump], owner: UUID
) -> None:
    making.ingest(ledger, [making.line("r", content="Hello", max_tokens=2)])
    pump(judged_by(fails_at("Hello", EngineFailed("gone")))).run(lambda: owner)
    assert bodies(ledger) == {}
    assert making.scalar(ledger, "SELECT state FROM chunk") == "leased", "until its owner is declared dead"


def test_nothing_of_a_stream_is_shown_before_it_was_judged(
    ledger: Ledger, servers: Addresses, pump: Callable[..., Pump], owner: UUID
) -> None:
    publisher = Publisher(servers.broker_url)
    judge = Scripted(lambda said: {"hate"} if said.turns[-1].speaker is Speaker.AGENT else set())
    filtered = pump(judged_by(judge), publisher)
    run = lambda: filtered.run(lambda: owner)  # noqa: E731
    pieces, text = asyncio.run(read_along(ledger, servers.broker_url, run, lambda: None, stream=True))
    publisher.close()
    assert (pieces, text) == ([], None)


@pytest.fixture
def app(ledger: Ledger, servers: Addresses) -> FastAPI:
    return create_app(ledger, RecordedHints(), Settings(broker_url=servers.broker_url))  # type: ignore[arg-type]


@pytest.fixture
def served(pump: Callable[..., Pump], owner: UUID, tmp_path: Path) -> Iterator[None]:
    """A worker with a list of words, for direct completions."""
    with moderation.opened(settings_of("words", tmp_path)) as chosen:
        filtered, is_over = pump(chosen), threading.Event()

        def run() -> None:
            while not is_over.wait(0.01):
                filtered.run(lambda: owner)

        thread = threading.Thread(target=run)
        thread.start()
        yield
        is_over.set()
        thread.join()


@pytest.mark.usefixtures("served")
def test_who_asks_directly_meets_the_filter_as_the_client_knows_it(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "A bomb!"}])
    assert (refusal.value.code, refusal.value.param) == ("content_filter", "prompt")
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **FORCED}
    whole = sdk.chat.completions.create(**asked)
    assert (whole.choices[0].finish_reason, whole.choices[0].message.content) == ("content_filter", None)
    chunks = list(sdk.chat.completions.create(**asked, stream=True))
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert not any(choice.delta.content for chunk in chunks for choice in chunk.choices)
    with pytest.raises(openai.ContentFilterFinishReasonError):
        sdk.chat.completions.parse(**asked)


def test_a_filter_that_finds_nothing_changes_nothing(ledger: Ledger, pump: Callable[..., Pump], owner: UUID) -> None:
    found = []
    for chosen in (None, judged_by(Scripted(lambda _: set()))):
        making.ingest(ledger, [making.line("r", content="Hi", max_tokens=6, seed=1)])
        pump(chosen).run(lambda: owner)
        found.append(list(bodies(ledger).values())[-1]["choices"])
    assert found[0] == found[1]
