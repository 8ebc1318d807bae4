"""Uploads in parts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "upload",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_lifetime_seconds", sa.Integer(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("upload_project_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("upload_pkey")),
    )
    op.create_index(op.f("upload_expires_at_idx"), "upload", ["expires_at"], unique=False)
    op.create_table(
        "upload_part",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("upload_id", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["upload.id"], name=op.f("upload_part_upload_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("upload_part_pkey")),
    )
    op.create_index(op.f("upload_part_upload_id_idx"), "upload_part", ["upload_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("upload_part_upload_id_idx"), table_name="upload_part")
    op.drop_table("upload_part")
    op.drop_index(op.f("upload_expires_at_idx"), table_name="upload")
    op.drop_table("upload")
