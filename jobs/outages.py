"""Forgives the silence of a time in which nobody could be heard: the database was away, its clock leapt, or no process
ran. Silence proves a death only where others were heard meanwhile.
"""

from sqlalchemy import Connection, text

WATCHED = "leases watched"  # in `tick`: when somebody last looked for the silent


def forgive(connection: Connection, *, unwatched_seconds: float, silent_seconds: float) -> int:
    """Note that somebody looks. Where nobody had for `unwatched_seconds`, all who lived then get the time of a lease to
    say that they still do; how many. The caller sweeps in the same transaction.
    """
    living = connection.execute(
        text("""
            WITH outage AS MATERIALIZED (
                SELECT next_at AS began_at FROM tick
                 WHERE name = :watched AND next_at < now() - make_interval(secs => :unwatched_seconds)),
            living AS (
                UPDATE worker w SET heartbeat_at = now() FROM outage
                 WHERE w.heartbeat_at > outage.began_at - make_interval(secs => :silent_seconds)
                RETURNING w.id),
            kept AS (
                UPDATE chunk c SET deadline = now() + make_interval(secs => :silent_seconds) FROM living
                 WHERE c.state = 'leased' AND c.owner = living.id)
            SELECT count(*) FROM living
        """),
        {"watched": WATCHED, "unwatched_seconds": unwatched_seconds, "silent_seconds": silent_seconds},
    ).scalar_one()
    connection.execute(
        text("""
            INSERT INTO tick (name, next_at) VALUES (:watched, now()) ON CONFLICT (name) DO UPDATE SET next_at = now()
        """),
        {"watched": WATCHED},
    )
    return int(living)
