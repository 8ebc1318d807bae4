"""The schema. Nothing on the two big tables, `request` and `result`, is ever updated; `chunk` is the queue.

`request`, `chunk` and `result` carry no foreign keys: a check for each of a million copied rows buys
nothing, since a batch's rows are written and deleted together.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, UUID

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)


def moment(name: str) -> Column[object]:
    """A nullable point in time; the database's clock sets it."""
    return Column(name, DateTime(timezone=True))


def count(name: str) -> Column[int]:
    """A number that starts at zero."""
    return Column(name, Integer, nullable=False, server_default="0")


def born() -> Column[object]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


project = Table(
    "project",
    metadata,
    Column("id", Text, primary_key=True),
    Column("weight", Integer, nullable=False, server_default="1"),  # its share when projects compete
    born(),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", Text, primary_key=True),  # the public part
    Column("project_id", ForeignKey("project.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("scopes", ARRAY(Text)),  # what it may do; null: everything
    Column("requests_per_minute", Integer),  # these four replace the settings of the same names; null: as set there
    Column("uploads_at_once", Integer),
    Column("open_batches", Integer),
    Column("queued_lines", BigInteger),
    born(),
    moment("expires_at"),
    moment("last_used_at"),
    moment("paid_until"),  # the requests made so far are paid for until then, at the pace allowed
    moment("revoked_at"),
)

upload_permit = Table(
    "upload_permit",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),  # for what ended without giving it back
    Index(None, "key_id"),
)

file = Table(
    "file",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", ForeignKey("project.id"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
    born(),
    moment("expires_at"),
    Index(None, "project_id", "created_at", postgresql_include=["size_bytes"]),  # whose sum is asked at every upload
    Index(None, "expires_at"),
    Index("file_unfinished_idx", "created_at", postgresql_where=text("state = 'uploading'")),
)

file_part = Table(
    "file_part",
    metadata,
    Column("file_id", ForeignKey("file.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("content", LargeBinary),  # as it is, in parts stored before there was `packed`
    Column("packed", LargeBinary),  # in zlib's format (RFC 1950)
    Column("size_bytes", Integer),  # unpacked
    CheckConstraint("num_nonnulls(content, packed) = 1", name="one_of_two"),
)

batch = Table(
    "batch",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("public_id", Text, nullable=False, unique=True),
    Column("project_id", ForeignKey("project.id"), nullable=False),
    Column("key_id", Text),  # whose limits it counts against
    Column("is_direct", Boolean, nullable=False, server_default="false"),  # one chat completion, no files
    Column("endpoint", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("model", Text),
    Column("input_file_id", Text),
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("state", Text, nullable=False),
    Column("outcome", Text),  # the terminal state that finalizing leads to
    Column("priority", SmallInteger, nullable=False, server_default="100"),  # lower is sooner
    Column("idempotency_key", Text),
    Column("idempotency_sha256", LargeBinary),
    Column("metadata", JSON),
    Column("errors", JSON),
    Column("output_lifetime_seconds", Integer),
    count("total"),
    count("completed"),  # these six are final: they are set with the terminal state, in its transaction
    count("failed"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    count("epoch"),  # of the lease for ingest and export
    Column("owner", UUID),
    born(),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    moment("in_progress_at"),
    moment("finalizing_at"),
    moment("completed_at"),
    moment("failed_at"),
    moment("expired_at"),
    moment("cancelling_at"),
    moment("cancelled_at"),
    moment("cleared_at"),  # its requests, chunks and results are deleted
    UniqueConstraint("project_id", "idempotency_key"),
    Index(None, "project_id", "id"),
    Index(
        "batch_open_idx",
        "state",
        postgresql_where=text("state IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    ),
    Index("batch_direct_idx", "expires_at", postgresql_where=text("is_direct")),
    Index("batch_uncleared_idx", "id", postgresql_where=text("cleared_at IS NULL AND NOT is_direct")),
)

request = Table(
    "request",
    metadata,
    Column("batch_id", BigInteger, primary_key=True),
    Column("line_no", Integer, primary_key=True),  # from 1, as the sender counts
    Column("custom_id", Text, nullable=False),
    Column("line", Text, nullable=False),  # as sent; text, since jsonb refuses \u0000 and reorders keys
)

chunk = Table(
    "chunk",
    metadata,
    Column("batch_id", BigInteger, primary_key=True),
    Column("first_position", Integer, primary_key=True),  # place in our order of work
    Column("line_numbers", ARRAY(Integer), nullable=False),
    Column("state", Text, nullable=False),
    Column("owner", UUID),
    count("epoch"),  # the fence: grows with every claim
    moment("deadline"),
    Column("not_before", DateTime(timezone=True), nullable=False, server_default=func.now()),
    count("crashes"),
    count("ok"),
    count("failed"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("ok + failed <= cardinality(line_numbers)", name="counts"),
    Index("chunk_ready_idx", "batch_id", "first_position", postgresql_where=text("state = 'ready'")),
    Index("chunk_leased_idx", "owner", postgresql_where=text("state = 'leased'")),
    postgresql_with={
        "fillfactor": "70",
        "autovacuum_vacuum_scale_factor": "0.02",
        "autovacuum_vacuum_threshold": "500",
    },
)

tally = Table(
    "tally",
    metadata,
    Column("batch_id", BigInteger, primary_key=True),
    Column("shard", SmallInteger, primary_key=True),  # chunks share a few, so that flushes seldom meet in one
    Column("ok", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    postgresql_with={"fillfactor": "50"},
)

result = Table(
    "result",
    metadata,
    Column("batch_id", BigInteger, primary_key=True),
    Column("line_no", Integer, primary_key=True),
    Column("ok", Boolean, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("reasoning_tokens", Integer, nullable=False),
)

worker = Table(
    "worker",
    metadata,
    Column("id", UUID, primary_key=True),  # new at every start of a process: host and pid come again
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("model", Text),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

model = Table(
    "model",
    metadata,
    Column("name", Text, primary_key=True),
    born(),
)

tick = Table(
    "tick",
    metadata,
    Column("name", Text, primary_key=True),
    Column("next_at", DateTime(timezone=True), nullable=False),
)

webhook = Table(
    "webhook",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", ForeignKey("project.id"), nullable=False),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),  # kept as it is: a signature cannot be made from a digest
    Column("events", ARRAY(Text), nullable=False),
    born(),
)

webhook_delivery = Table(
    "webhook_delivery",
    metadata,
    Column("event_id", Text, primary_key=True),  # one for all endpoints and all tries
    Column("webhook_id", ForeignKey("webhook.id", ondelete="CASCADE"), primary_key=True),
    Column("event", Text, nullable=False),
    Column("batch_public_id", Text, nullable=False),
    born(),
    count("tries"),
    moment("next_at"),  # null: delivered or given up
    moment("delivered_at"),
    Column("failure", Text),  # of the last try
    Index("webhook_delivery_due_idx", "next_at", postgresql_where=text("next_at IS NOT NULL")),
)

upload = Table(
    "upload",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", ForeignKey("project.id"), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),  # what its parts must come to
    Column("file_lifetime_seconds", Integer),
    Column("state", Text, nullable=False),
    Column("file_id", Text),  # the file it became
    born(),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Index(None, "expires_at"),
)

upload_part = Table(
    "upload_part",
    metadata,
    Column("id", Text, primary_key=True),
    Column("upload_id", ForeignKey("upload.id", ondelete="CASCADE"), nullable=False),
    Column("file_id", Text, nullable=False),  # the invisible file that holds its bytes until the upload is complete
    Column("size_bytes", BigInteger, nullable=False),
    Column("place", Integer),  # in the complete file, from 0; null: not of it
    born(),
    Index(None, "upload_id"),
)
