"""The stored answers: each line's written once, counted where it was written."""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, text

from jobs.leases import Lease
from jobs.states import ChunkState

TALLY_SHARDS = 16


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as OpenAI counts them: `cached` is part of `prompt`, `reasoning` of `completion`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The answer of one line: `body` is the JSON a caller of the API would have received with `status`."""

    line_no: int
    status: int
    body: str
    usage: Usage = Usage()

    @property
    def is_ok(self) -> bool:
        return self.status < 400


def flush(connection: Connection, lease: Lease, results: Sequence[Result]) -> ChunkState | None:
    """Store results under a lease; the chunk's state after it, None if the lease was lost.

    Promise, in one statement: a line has at most one result (primary key, ON CONFLICT DO NOTHING), the
    counters count the rows really inserted (RETURNING), and nothing is written without the lease (epoch,
    owner and state, locked first). Doing it twice changes nothing, so a COMMIT of unknown outcome may be
    repeated; then `done` with our own epoch means that the first had succeeded.

    The batch's tally grows by the same rows, for whoever looks while it runs; its end adds up the chunks.
    """
    row = connection.execute(FLUSH, _arguments(lease, results)).one_or_none()
    if row is None:
        row = connection.execute(
            text("""
                SELECT state FROM chunk
                 WHERE batch_id = :batch_id AND first_position = :first_position
                   AND epoch = :epoch AND state = 'done'
            """),
            {"batch_id": lease.batch_id, "first_position": lease.first_position, "epoch": lease.epoch},
        ).one_or_none()
    return None if row is None else ChunkState(row[0])


FLUSH = text("""
    WITH lease AS MATERIALIZED (
        SELECT line_numbers FROM chunk
         WHERE batch_id = :batch_id AND first_position = :first_position
           AND epoch = :epoch AND owner = :owner AND state = 'leased'
           FOR NO KEY UPDATE),
    stored AS (
        INSERT INTO result (batch_id, line_no, ok, status, epoch, body,
                            prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens)
        SELECT :batch_id, x.line_no, x.ok, x.status, :epoch, x.body, x.prompt, x.cached, x.completion, x.reasoning
          FROM json_to_recordset(CAST(:results AS json))
               AS x(line_no int, ok bool, status smallint, body text,
                    prompt int, cached int, completion int, reasoning int), lease
         WHERE x.line_no = ANY(lease.line_numbers)
        ON CONFLICT DO NOTHING
        RETURNING ok, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens),
    sums AS (
        SELECT count(*) FILTER (WHERE ok) AS ok, count(*) FILTER (WHERE NOT ok) AS failed,
               coalesce(sum(prompt_tokens), 0) AS prompt, coalesce(sum(cached_tokens), 0) AS cached,
               coalesce(sum(completion_tokens), 0) AS completion,
               coalesce(sum(reasoning_tokens), 0) AS reasoning
          FROM stored),
    tallied AS (
        INSERT INTO tally AS t (batch_id, shard, ok, failed, prompt_tokens, cached_tokens, completion_tokens,
                                reasoning_tokens)
        SELECT :batch_id, :shard, sums.* FROM sums WHERE sums.ok + sums.failed > 0
        ON CONFLICT (batch_id, shard) DO UPDATE
           SET ok = t.ok + excluded.ok, failed = t.failed + excluded.failed,
               prompt_tokens = t.prompt_tokens + excluded.prompt_tokens,
               cached_tokens = t.cached_tokens + excluded.cached_tokens,
               completion_tokens = t.completion_tokens + excluded.completion_tokens,
               reasoning_tokens = t.reasoning_tokens + excluded.reasoning_tokens)
    UPDATE chunk c
       SET ok = c.ok + sums.ok, failed = c.failed + sums.failed,
           prompt_tokens = c.prompt_tokens + sums.prompt, cached_tokens = c.cached_tokens + sums.cached,
           completion_tokens = c.completion_tokens + sums.completion,
           reasoning_tokens = c.reasoning_tokens + sums.reasoning,
           state = CASE WHEN c.ok + c.failed + sums.ok + sums.failed = cardinality(c.line_numbers)
                        THEN 'done' ELSE c.state END
      FROM sums, lease
     WHERE c.batch_id = :batch_id AND c.first_position = :first_position
       AND c.epoch = :epoch AND c.owner = :owner AND c.state = 'leased'
    RETURNING c.state
""")


def _arguments(lease: Lease, results: Sequence[Result]) -> dict[str, object]:
    return {
        "batch_id": lease.batch_id,
        "first_position": lease.first_position,
        "epoch": lease.epoch,
        "owner": lease.owner,
        "shard": lease.first_position // len(lease.line_numbers) % TALLY_SHARDS,
        "results": orjson.dumps([_record(result) for result in results]).decode(),
    }


def _record(result: Result) -> dict[str, object]:
    """A row for `json_to_recordset`: the driver writes arrays sign by sign in Python, JSON is written at once."""
    return {
        "line_no": result.line_no,
        "ok": result.is_ok,
        "status": result.status,
        "body": result.body,
        "prompt": result.usage.prompt_tokens,
        "cached": result.usage.cached_tokens,
        "completion": result.usage.completion_tokens,
        "reasoning": result.usage.reasoning_tokens,
    }


def of_line(connection: Connection, batch_id: int, line_no: int) -> tuple[int, str] | None:
    """Status and body of one line's answer, None while there is none."""
    row = connection.execute(
        text("SELECT status, body FROM result WHERE batch_id = :batch_id AND line_no = :line_no"),
        {"batch_id": batch_id, "line_no": line_no},
    ).one_or_none()
    return None if row is None else (row[0], row[1])
