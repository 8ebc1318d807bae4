"""The ledger: files, batches, their requests, the queue of chunks, and results."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

TERMINAL_IS_FINAL = """
CREATE FUNCTION batch_terminal_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'batch % is %, which is final', OLD.public_id, OLD.state;
END $$;
CREATE TRIGGER batch_terminal_is_final BEFORE UPDATE OF state ON batch FOR EACH ROW
    WHEN (OLD.state IN ('completed', 'failed', 'expired', 'cancelled') AND NEW.state <> OLD.state)
    EXECUTE FUNCTION batch_terminal_is_final();
"""

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "chunk",
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("first_position", sa.Integer(), nullable=False),
        sa.Column("line_numbers", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("owner", sa.UUID(), nullable=True),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("crashes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("ok", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("ok + failed <= cardinality(line_numbers)", name=op.f("chunk_counts_check")),
        sa.PrimaryKeyConstraint("batch_id", "first_position", name=op.f("chunk_pkey")),
        postgresql_with={
            "fillfactor": "70",
            "autovacuum_vacuum_scale_factor": "0.02",
            "autovacuum_vacuum_threshold": "500",
        },
    )
    op.create_index("chunk_leased_idx", "chunk", ["owner"], unique=False, postgresql_where=sa.text("state = 'leased'"))
    op.create_index(
        "chunk_ready_idx",
        "chunk",
        ["batch_id", "first_position"],
        unique=False,
        postgresql_where=sa.text("state = 'ready'"),
    )
    op.create_table(
        "model",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("model_pkey")),
    )
    op.create_table(
        "project",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("weight", sa.Integer(), server_default="1", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("project_pkey")),
    )
    op.create_table(
        "request",
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("line_no", sa.Integer(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "line_no", name=op.f("request_pkey")),
    )
    op.create_table(
        "result",
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("line_no", sa.Integer(), nullable=False),
        sa.Column("ok", sa.Boolean(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("reasoning_tokens", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "line_no", name=op.f("result_pkey")),
    )
    op.create_table(
        "tick",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("tick_pkey")),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("worker_pkey")),
    )
    op.create_table(
        "api_key",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("api_key_project_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("api_key_pkey")),
    )
    op.create_table(
        "batch",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("is_direct", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("input_file_id", sa.Text(), nullable=True),
        sa.Column("output_file_id", sa.Text(), nullable=True),
        sa.Column("error_file_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("priority", sa.SmallInteger(), server_default="100", nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("idempotency_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("metadata", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("errors", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("output_lifetime_seconds", sa.Integer(), nullable=True),
        sa.Column("total", sa.Integer(), server_default="0", nullable=False),
        sa.Column("completed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("owner", sa.UUID(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("in_progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finalizing_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelling_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("batch_project_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("batch_pkey")),
        sa.UniqueConstraint("project_id", "idempotency_key", name=op.f("batch_project_id_idempotency_key_key")),
        sa.UniqueConstraint("public_id", name=op.f("batch_public_id_key")),
    )
    op.create_index(
        "batch_open_idx",
        "batch",
        ["state"],
        unique=False,
        postgresql_where=sa.text("state IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    )
    op.create_index(op.f("batch_project_id_id_idx"), "batch", ["project_id", "id"], unique=False)
    op.create_table(
        "file",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("file_project_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("file_pkey")),
    )
    op.create_index(op.f("file_project_id_created_at_idx"), "file", ["project_id", "created_at"], unique=False)
    op.create_table(
        "file_part",
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["file_id"], ["file.id"], name=op.f("file_part_file_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("file_id", "seq", name=op.f("file_part_pkey")),
    )
    op.execute("ALTER TABLE file_part ALTER COLUMN content SET STORAGE EXTERNAL")  # parts are read whole
    op.execute(TERMINAL_IS_FINAL)


def downgrade() -> None:
    op.drop_table("file_part")
    op.drop_index(op.f("file_project_id_created_at_idx"), table_name="file")
    op.drop_table("file")
    op.drop_index(op.f("batch_project_id_id_idx"), table_name="batch")
    op.drop_index(
        "batch_open_idx",
        table_name="batch",
        postgresql_where=sa.text("state IN ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    )
    op.drop_table("batch")
    op.drop_table("api_key")
    op.drop_table("worker")
    op.drop_table("tick")
    op.drop_table("result")
    op.drop_table("request")
    op.drop_table("project")
    op.drop_table("model")
    op.drop_index("chunk_ready_idx", table_name="chunk", postgresql_where=sa.text("state = 'ready'"))
    op.drop_index("chunk_leased_idx", table_name="chunk", postgresql_where=sa.text("state = 'leased'"))
    op.drop_table("chunk")
    op.execute("DROP FUNCTION batch_terminal_is_final()")
