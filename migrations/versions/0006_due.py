"""What is due to be deleted is found, and what a project keeps is summed up, without a look at each file."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

OF_PROJECT = "file_project_id_created_at_idx"


def upgrade() -> None:
    op.create_index("file_expires_at_idx", "file", ["expires_at"])
    op.create_index("file_unfinished_idx", "file", ["created_at"], postgresql_where=sa.text("state = 'uploading'"))
    op.drop_index(OF_PROJECT, table_name="file")
    op.create_index(OF_PROJECT, "file", ["project_id", "created_at"], postgresql_include=["size_bytes"])
    op.create_index("batch_direct_idx", "batch", ["expires_at"], postgresql_where=sa.text("is_direct"))


def downgrade() -> None:
    op.drop_index("batch_direct_idx", table_name="batch", postgresql_where=sa.text("is_direct"))
    op.drop_index(OF_PROJECT, table_name="file")
    op.create_index(OF_PROJECT, "file", ["project_id", "created_at"])
    op.drop_index("file_unfinished_idx", table_name="file", postgresql_where=sa.text("state = 'uploading'"))
    op.drop_index("file_expires_at_idx", table_name="file")
