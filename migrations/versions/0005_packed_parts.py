"""Parts of files are stored packed.

A program of before goes on storing plain parts, which are read as ever. It must not read packed ones: it takes a part
without content for the end of a file. So API and io workers of before are to be stopped first; model workers read no
files.
"""

import zlib

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("file_part", "content", nullable=True)
    op.add_column("file_part", sa.Column("packed", sa.LargeBinary()))
    op.add_column("file_part", sa.Column("size_bytes", sa.Integer()))
    op.create_check_constraint(op.f("file_part_one_of_two_check"), "file_part", "num_nonnulls(content, packed) = 1")
    op.execute("ALTER TABLE file_part ALTER COLUMN packed SET STORAGE EXTERNAL")  # Postgres would try to pack it again


def downgrade() -> None:
    connection = op.get_bind()
    places = connection.execute(sa.text("SELECT file_id, seq FROM file_part WHERE packed IS NOT NULL")).all()
    one = "WHERE file_id = :file_id AND seq = :seq"
    for file_id, seq in places:
        at = {"file_id": file_id, "seq": seq}
        packed = connection.execute(sa.text(f"SELECT packed FROM file_part {one}"), at).scalar_one()  # noqa: S608
        connection.execute(
            sa.text(f"UPDATE file_part SET content = :content, packed = NULL {one}"),  # noqa: S608
            {**at, "content": zlib.decompress(packed)},
        )
    op.drop_constraint(op.f("file_part_one_of_two_check"), "file_part")
    op.drop_column("file_part", "size_bytes")
    op.drop_column("file_part", "packed")
    op.alter_column("file_part", "content", nullable=False)
