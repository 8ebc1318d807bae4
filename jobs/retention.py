"""When the lines of an ended batch are deleted, and how: in slices, so that nothing waits for a million rows.

The batch itself stays, with its counts and usage. The caller owns the transaction.
"""

from sqlalchemy import Connection, text

SLICE_LINES = 50_000


def clear(connection: Connection, *, retention_days: int) -> int | None:
    """Delete a slice of the oldest batch that is due; its id, None if no batch is.

    Promise: nothing is deleted of a batch that has not ended, nor while one of its result files is there; a
    batch ends with the transaction that links them, so what is deleted was exported.
    """
    batch_id: int | None = connection.execute(
        text("""
            SELECT b.id FROM batch b
             WHERE b.cleared_at IS NULL AND NOT b.is_direct
               AND b.state IN ('completed', 'failed', 'expired', 'cancelled')
               AND coalesce(b.completed_at, b.failed_at, b.expired_at, b.cancelled_at)
                   <= now() - make_interval(days => :retention_days)
               AND NOT EXISTS (SELECT 1 FROM file f WHERE f.id IN (b.output_file_id, b.error_file_id))
             ORDER BY b.id LIMIT 1
               FOR UPDATE SKIP LOCKED
        """),
        {"retention_days": retention_days},
    ).scalar_one_or_none()
    if batch_id is not None and not _delete_slice(connection, batch_id):
        connection.execute(text("DELETE FROM chunk WHERE batch_id = :id"), {"id": batch_id})
        connection.execute(text("DELETE FROM tally WHERE batch_id = :id"), {"id": batch_id})
        connection.execute(text("UPDATE batch SET cleared_at = now() WHERE id = :id"), {"id": batch_id})
    return batch_id


def _delete_slice(connection: Connection, batch_id: int) -> bool:
    """Delete the first requests and their results; False if there were none left."""
    first = connection.execute(
        text("SELECT min(line_no) FROM request WHERE batch_id = :id"), {"id": batch_id}
    ).scalar_one()
    if first is None:
        return False
    values = {"id": batch_id, "end": first + SLICE_LINES}
    connection.execute(text("DELETE FROM result WHERE batch_id = :id AND line_no < :end"), values)
    connection.execute(text("DELETE FROM request WHERE batch_id = :id AND line_no < :end"), values)
    return True
