"""Keys with scopes and limits, batches that are cleared in time, and webhooks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY_COLUMNS = (
    ("scopes", postgresql.ARRAY(sa.Text())),
    ("requests_per_minute", sa.Integer()),
    ("uploads_at_once", sa.Integer()),
    ("open_batches", sa.Integer()),
    ("queued_lines", sa.BigInteger()),
    ("expires_at", sa.DateTime(timezone=True)),
    ("last_used_at", sa.DateTime(timezone=True)),
    ("paid_until", sa.DateTime(timezone=True)),
)


def upgrade() -> None:
    for name, kind in KEY_COLUMNS:
        op.add_column("api_key", sa.Column(name, kind, nullable=True))
    op.add_column("batch", sa.Column("key_id", sa.Text(), nullable=True))
    op.add_column("batch", sa.Column("cleared_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "batch_uncleared_idx",
        "batch",
        ["id"],
        unique=False,
        postgresql_where=sa.text("cleared_at IS NULL AND NOT is_direct"),
    )
    op.create_table(
        "upload_permit",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("upload_permit_pkey")),
    )
    op.create_index(op.f("upload_permit_key_id_idx"), "upload_permit", ["key_id"], unique=False)
    _create_webhooks()


def _create_webhooks() -> None:
    op.create_table(
        "webhook",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("webhook_project_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_pkey")),
    )
    op.create_table(
        "webhook_delivery",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("batch_public_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhook.id"], name=op.f("webhook_delivery_webhook_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", "webhook_id", name=op.f("webhook_delivery_pkey")),
    )
    op.create_index(
        "webhook_delivery_due_idx",
        "webhook_delivery",
        ["next_at"],
        unique=False,
        postgresql_where=sa.text("next_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("webhook_delivery")
    op.drop_table("webhook")
    op.drop_table("upload_permit")
    op.drop_index("batch_uncleared_idx", table_name="batch")
    op.drop_column("batch", "cleared_at")
    op.drop_column("batch", "key_id")
    for name, _ in reversed(KEY_COLUMNS):
        op.drop_column("api_key", name)
