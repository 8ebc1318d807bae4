"""The pump on a real ledger, with a real engine over a tiny model of random weights."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import psycopg
import pytest
from psycopg.errors import DiskFull
from sqlalchemy import Connection, text
from sqlalchemy import Engine as Ledger
from sqlalchemy.exc import DBAPIError, OperationalError

from jobs import batches, database, direct, export, leases, results
from jobs.leases import Lease
from jobs.results import Result
from jobs.states import BatchState, ChunkState
from tests import tiny_model
from tests.jobs import making
from tests.worker.chat import templates
from tests.worker.pumping import pump_of
from worker import engine
from worker.answering import Chunk
from worker.chat.structure import Missed, Structure
from worker.pump import Pump


@pytest.fixture
def inference(tmp_path: Path) -> Iterator[engine.Engine]:
    with engine.load(tiny_model.write(tmp_path / "tiny"), engine.EngineSettings(threads=1, slots_max=8)) as running:
        yield running


@pytest.fixture
def pump(ledger: Ledger, inference: engine.Engine, tmp_path: Path) -> Pump:
    return pump_of(ledger, inference, tiny_model.write(tmp_path / "again"))


@pytest.fixture
def owner(ledger: Ledger) -> UUID:
    return making.worker(ledger)


def claimed(pump: Pump, owner: UUID) -> Chunk:
    (chunk,) = pump._claim(owner, 32_767, chunks=1)
    pump._held[chunk.key] = chunk
    return chunk


def bodies(ledger: Ledger) -> dict[int, dict[str, object]]:
    with ledger.connect() as connection:
        rows = connection.execute(text("SELECT line_no, body FROM result")).all()
    return {row[0]: orjson.loads(row[1]) for row in rows}


def test_a_batch_is_answered_to_its_end_and_bad_lines_fail_alone(ledger: Ledger, pump: Pump, owner: UUID) -> None:
    lines = [making.line(f"r{n}", content=f"Q{n}", max_tokens=4) for n in range(10)]
    lines[3] = making.line("bad", temperature=3)
    lines[5] = making.line("many", n=1_000_000)
    lines[7] = making.line("long", content="x" * 50_000)
    batch = making.ingest(ledger, lines)
    pump.run(lambda: owner)
    export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS)
    ended = making.fetch(ledger, batch)
    assert (ended.state, ended.completed, ended.failed) == (BatchState.COMPLETED, 7, 3)
    errors = {one["custom_id"]: one["response"] for one in making.content(ledger, ended.error_file_id)}
    codes = {name: answer["body"]["error"]["code"] for name, answer in errors.items()}  # type: ignore[index]
    assert codes == {
        "bad": "decimal_above_max_value",
        "many": "integer_above_max_value",
        "long": "context_length_exceeded",
    }
    assert 0 < ended.completion_tokens <= 28


def test_tokens_of_thinking_are_counted_for_the_batch(ledger: Ledger, owner: UUID, tmp_path: Path) -> None:
    folder = tiny_model.write(
        tmp_path / "tiny", template=templates.ALWAYS_THINKING, whole=["<think>", "</think>"], seed=1
    )
    batch = making.ingest(
        ledger, [making.line(f"r{n}", max_tokens=6, thinking_token_budget=2, ignore_eos=True) for n in range(3)]
    )
    with engine.load(folder, engine.EngineSettings(threads=1, slots_max=8)) as running:
        pump_of(ledger, running, folder).run(lambda: owner)
    export.finalize(ledger, batch.id, owner=owner, settings=making.SETTINGS)
    ended = making.fetch(ledger, batch)
    assert (ended.completed, ended.completion_tokens, ended.reasoning_tokens) == (3, 18, 9)


def test_the_same_line_gets_the_same_answer_in_another_order_and_company(
    ledger: Ledger, pump: Pump, owner: UUID
) -> None:
    """Without a seed the noise comes from (batch, custom_id), so one batch asked twice must agree."""
    lines = [making.line(f"r{n}", content=f"Q{n}", max_tokens=6, temperature=1) for n in range(6)]
    making.ingest(ledger, lines)
    pump.run(lambda: owner)
    first = bodies(ledger)
    with ledger.begin() as connection:
        connection.execute(text("DELETE FROM result"))
        connection.execute(text("UPDATE chunk SET state = 'ready', ok = 0, owner = NULL"))
        connection.execute(text("UPDATE batch SET state = 'in_progress'"))
        connection.execute(text("UPDATE chunk SET line_numbers = ARRAY(SELECT unnest(line_numbers) ORDER BY 1 DESC)"))
    pump.run(lambda: owner)
    assert len(first) == 6
    assert {n: body["choices"] for n, body in bodies(ledger).items()} == {n: b["choices"] for n, b in first.items()}


def test_finished_lines_are_not_computed_again(
    ledger: Ledger, pump: Pump, owner: UUID, inference: engine.Engine
) -> None:
    batch = making.ingest(ledger, [making.line(f"r{n}", max_tokens=2) for n in range(4)])
    (lease,) = making.claim(ledger, batch, owner)
    database.run(ledger, lambda c: results.flush(c, lease, making.results([1, 2, 3])))
    database.run(ledger, lambda c: leases.release(c, lease))
    pump.run(lambda: owner)
    assert inference.progress.output_tokens <= 2
    assert making.fetch(ledger, batch).completed == 4


def test_lines_that_ask_the_same_are_computed_once_and_each_keeps_its_id(
    ledger: Ledger, pump: Pump, owner: UUID, inference: engine.Engine
) -> None:
    said = {"max_tokens": 3, "temperature": 0}
    alike = [making.line(f"same{n}", content="Same", metadata={"n": str(n)}, **said) for n in range(5)]
    seeded = [making.line(f"seeded{n}", content="Same", max_tokens=3, seed=4) for n in range(3)]
    drawn = [making.line(f"drawn{n}", content="Same", max_tokens=3) for n in range(2)]
    batch = making.ingest(ledger, [*alike, *seeded, *drawn])
    pump.run(lambda: owner)
    found = list(bodies(ledger).values())
    assert making.fetch(ledger, batch).completed == len({body["id"] for body in found}) == 10
    cached = [body["usage"]["prompt_tokens_details"]["cached_tokens"] for body in found]  # type: ignore[index]
    whole = found[0]["usage"]["prompt_tokens"]  # type: ignore[index]
    assert cached.count(whole) == 6, "four of five alike, two of three seeded"
    assert inference.progress.output_tokens <= 4 * 3
    answers = [orjson.dumps(bodies(ledger)[line_no]["choices"]) for line_no in range(1, 9)]
    assert (len(set(answers[:5])), len(set(answers[5:]))) == (1, 1)


def test_a_chunk_that_was_lost_twice_is_answered_alone(ledger: Ledger, pump: Pump, owner: UUID) -> None:
    making.ingest(ledger, [making.line(f"r{n}") for n in range(12)])
    other = claimed(pump, owner)
    with ledger.begin() as connection:
        connection.execute(text("UPDATE chunk SET crashes = 2 WHERE first_position = 4"))
    assert not pump._lease(owner), "it waits until what is held is answered"
    pump._held.clear()
    suspect = claimed(pump, owner)
    assert (other.lease.first_position, suspect.lease.first_position) == (0, 4)
    assert not pump._lease(owner), "and nothing is leased beside it"
    pump._held.clear()
    assert claimed(pump, owner).lease.first_position == 8


def test_a_long_line_of_a_chunk_does_not_keep_the_next_chunks_waiting(
    ledger: Ledger, pump: Pump, owner: UUID, inference: engine.Engine
) -> None:
    chunks, chunk_lines, long, short = 6, making.SETTINGS.chunk_lines, 400, 2
    lengths = ([long] + [short] * (chunk_lines - 1)) * chunks
    batch = making.ingest(
        ledger, [making.line(f"r{n}", max_tokens=tokens, ignore_eos=True) for n, tokens in enumerate(lengths)]
    )
    assert making.scalar(ledger, "SELECT count(*) FROM chunk") == chunks
    pump.run(lambda: owner)
    assert making.fetch(ledger, batch).completed == len(lengths)
    assert inference.progress.steps < 2 * long, "a chunk or two at a time take three times as long as their long lines"


def test_the_ledger_is_asked_for_many_chunks_at_once(ledger: Ledger, pump: Pump, owner: UUID) -> None:
    making.ingest(ledger, [making.line(f"r{n}") for n in range(100)])
    window = room = pump._room
    held = [claimed(pump, owner) for _ in range(window)]
    assert pump._room == 0
    while held and not (room := pump._room):
        del pump._held[held.pop().key]
    assert window / 2 <= room < window


def test_a_claim_whose_answer_was_lost_costs_nobody_a_crash(
    ledger: Ledger, pump: Pump, owner: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    making.ingest(ledger, [making.line(f"r{n}") for n in range(12)])
    other = claimed(pump, owner)
    claim, lost = leases.claim, []

    def claim_and_lose(*args: Any, **kwargs: Any) -> list[Lease]:
        leased = claim(*args, **kwargs)
        if len(lost) < 2:
            lost.extend(leased)
            raise OperationalError("", None, psycopg.OperationalError("the connection is gone"))
        return leased

    monkeypatch.setattr(leases, "claim", claim_and_lose)
    monkeypatch.setattr("jobs.database.random.uniform", lambda *_: 0.0)
    again = claimed(pump, owner)
    assert [lease.first_position for lease in lost] == [4, 4]
    assert (other.lease.first_position, again.lease.first_position) == (0, 4)
    assert making.scalar(ledger, "SELECT count(*) FROM chunk WHERE state = 'leased'") == 2
    assert making.scalar(ledger, "SELECT sum(crashes) FROM chunk") == 0


def test_answers_wait_for_a_disk_with_room(
    ledger: Ledger, pump: Pump, owner: UUID, inference: engine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = making.ingest(ledger, [making.line(f"r{n}", max_tokens=2) for n in range(4)])
    flush, refused = results.flush, []

    def flush_at_last(connection: Connection, lease: Lease, answered: list[Result]) -> ChunkState | None:
        if len(refused) < 3:
            refused.append(len(answered))
            raise DBAPIError("INSERT", {}, DiskFull("no room"))
        return flush(connection, lease, answered)

    monkeypatch.setattr("worker.answering.results.flush", flush_at_last)
    monkeypatch.setattr("worker.answering.STORE_AGAIN_SECONDS", 0)
    pump.run(lambda: owner)
    assert len(refused) == 3
    assert inference.progress.output_tokens <= 8
    assert making.fetch(ledger, batch).completed == 4


def test_a_direct_completion_is_answered_before_any_batch(ledger: Ledger, pump: Pump, owner: UUID) -> None:
    making.ingest(ledger, [making.line("r", max_tokens=2)])
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    batch_id = database.run(
        ledger, lambda c: direct.submit(c, "default", body, model="tiny", public_id=direct.new_id())
    ).id
    (first,) = pump._claim(owner, 32_767, chunks=1)
    assert first.lease.batch_id == batch_id
    database.run(ledger, lambda c: leases.release(c, first.lease))
    pump.run(lambda: owner)
    answer = database.run(ledger, lambda c: direct.answer(c, batch_id))
    assert answer is not None
    assert answer[0] == 200
    database.run(ledger, lambda c: direct.drop(c, batch_id))
    assert making.scalar(ledger, "SELECT count(*) FROM batch WHERE is_direct") == 0


def test_a_draining_pump_leases_nothing(ledger: Ledger, pump: Pump, owner: UUID) -> None:
    making.ingest(ledger, [making.line("r")])
    pump.drain()
    pump.run(lambda: owner)
    assert making.scalar(ledger, "SELECT count(*) FROM chunk WHERE state = 'ready'") == 1


def test_a_line_given_back_unfinished_counts_no_crash(ledger: Ledger, pump: Pump, owner: UUID) -> None:
    making.ingest(ledger, [making.line("r", max_tokens=400)])
    chunk = claimed(pump, owner)
    pump._drain_until = 0.0  # the drain's time is over
    pump._answer(chunk)
    assert making.scalar(ledger, "SELECT crashes FROM chunk WHERE state = 'ready'") == 0


def test_a_batch_cancelled_under_way_gets_no_more_results(ledger: Ledger, pump: Pump, owner: UUID) -> None:
    batch = making.ingest(ledger, [making.line("r", max_tokens=2)])
    chunk = claimed(pump, owner)
    database.run(ledger, lambda c: batches.cancel(c, batch.project_id, batch.public_id))
    pump._answer(chunk)
    assert bodies(ledger) == {}


CHOICE = {"structured_outputs": {"choice": ["yes", "no"]}, "max_tokens": 8}


def miss(monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[str]:
    """Let the check of answers find fault with the first of them; all texts it was shown."""
    shown: list[str] = []

    def check(form: Structure, text: str) -> None:
        shown.append(text)
        if len(shown) <= times:
            raise Missed(form.param, "on purpose")

    monkeypatch.setattr(Structure, "check", check)
    return shown


@pytest.mark.parametrize("noise", [{}, {"seed": 4}])
def test_an_answer_that_missed_its_form_is_drawn_again_once_with_noise_of_its_own(
    ledger: Ledger, pump: Pump, owner: UUID, monkeypatch: pytest.MonkeyPatch, noise: dict[str, int]
) -> None:
    seeds = []
    submit = pump._engine.submit
    monkeypatch.setattr(
        pump._means.twins, "_submit", lambda prompt: (seeds.append(prompt.sampling.seed), submit(prompt))[1]
    )
    shown = miss(monkeypatch, times=1)
    batch = making.ingest(ledger, [making.line("r", **CHOICE, **noise)])
    pump.run(lambda: owner)
    assert making.fetch(ledger, batch).completed == 1
    assert bodies(ledger)[1]["choices"][0]["message"]["content"] == shown[1]  # type: ignore[index]
    assert len(set(seeds)) == len(seeds) == len(shown) == 2


def test_an_answer_that_missed_its_form_twice_is_an_error_of_its_line(
    ledger: Ledger, pump: Pump, owner: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = miss(monkeypatch, times=2)
    batch = making.ingest(ledger, [making.line("r", **CHOICE)])
    pump.run(lambda: owner)
    ended = making.fetch(ledger, batch)
    assert (ended.completed, ended.failed, len(shown)) == (0, 1, 2)
    error = bodies(ledger)[1]["error"]
    assert error == {
        "message": "The model's answer is not what 'structured_outputs.choice' asks for: on purpose",
        "type": "server_error",
        "param": "structured_outputs.choice",
        "code": "invalid_structured_output",
    }


def test_a_greedy_answer_that_missed_its_form_is_not_drawn_again(
    ledger: Ledger, pump: Pump, owner: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = miss(monkeypatch, times=1)
    batch = making.ingest(ledger, [making.line("r", **CHOICE, temperature=0)])
    pump.run(lambda: owner)
    assert (making.fetch(ledger, batch).failed, len(shown)) == (1, 1)


def test_a_line_after_which_no_token_can_follow_is_an_error_at_once(
    ledger: Ledger, pump: Pump, owner: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def submit(prompt: engine.Prompt) -> Future[list[engine.Completion]]:
        asked.append(prompt)
        lost: Future[list[engine.Completion]] = Future()
        lost.set_exception(engine.NothingToSample("the grammar cannot go on"))
        return lost

    monkeypatch.setattr(pump._means.twins, "_submit", submit)
    batch = making.ingest(ledger, [making.line("r")])
    pump.run(lambda: owner)
    assert (making.fetch(ledger, batch).failed, len(asked)) == (1, 1)
    assert "the grammar cannot go on" in bodies(ledger)[1]["error"]["message"]  # type: ignore[index]


def test_lines_as_deep_as_can_be_written_are_answered_or_refused_one_by_one(
    ledger: Ledger, owner: UUID, inference: engine.Engine, tmp_path: Path
) -> None:
    template = tiny_model.CHATML + "{% if extra %}{% endif %}"
    pump = pump_of(ledger, inference, tiny_model.write(tmp_path / "switch", template=template))
    depths = range(245, 260)
    line = making.line("r", max_tokens=1, temperature=0, chat_template_kwargs={"extra": "deep"})
    nested = {n: line.replace(b'"deep"', b"[" * n + b"]" * n).replace(b'"r"', b'"r%d"' % n) for n in depths}
    batch = making.ingest(ledger, nested.values())
    pump.run(lambda: owner)
    ended = making.fetch(ledger, batch)
    assert ended.completed + ended.failed == len(depths)
    assert ended.completed > 0
    assert ended.failed > 0
    assert making.scalar(ledger, "SELECT string_agg(DISTINCT status::text, ' ') FROM result") == "200 400"


def test_a_line_that_nobody_foresaw_fails_alone(
    ledger: Ledger, pump: Pump, owner: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = pump._means.chat.prompts

    def fail(questions: Any, **more: Any) -> Any:
        if any("Unforeseen" in str(question.body) for question in questions):
            raise ZeroDivisionError
        return prompts(questions, **more)

    monkeypatch.setattr(pump._means.chat, "prompts", fail)
    batch = making.ingest(
        ledger, [making.line(f"r{n}", content="Unforeseen" if n == 1 else "Hi", max_tokens=2) for n in range(4)]
    )
    pump.run(lambda: owner)
    ended = making.fetch(ledger, batch)
    assert (ended.completed, ended.failed) == (3, 1)
    assert bodies(ledger)[2]["error"]["code"] == "server_error"  # type: ignore[index]


def test_a_prompt_that_comes_to_nothing_is_refused_alone(
    ledger: Ledger, owner: UUID, inference: engine.Engine, tmp_path: Path
) -> None:
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    pump = pump_of(ledger, inference, tiny_model.write(tmp_path / "bare", template=template))
    batch = making.ingest(ledger, [making.line("nothing", content=""), making.line("some", max_tokens=2)])
    pump.run(lambda: owner)
    ended = making.fetch(ledger, batch)
    assert (ended.completed, ended.failed) == (1, 1)
    assert bodies(ledger)[1]["error"]["param"] == "messages"  # type: ignore[index]


def test_a_line_that_the_engine_cannot_take_fails_alone(
    ledger: Ledger, pump: Pump, owner: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = pump._engine.submit

    def refuse(prompt: engine.Prompt) -> Future[list[engine.Completion]]:
        if prompt.tokens_max == 3:
            raise engine.PromptRefused("on purpose")
        return submit(prompt)

    monkeypatch.setattr(pump._means.twins, "_submit", refuse)
    batch = making.ingest(ledger, [making.line(f"r{n}", max_tokens=n) for n in range(2, 5)])
    pump.run(lambda: owner)
    ended = making.fetch(ledger, batch)
    assert (ended.completed, ended.failed) == (2, 1)
