"""What a running batch has come to, without a look at each of its chunks."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


def upgrade() -> None:
    op.create_table(
        "tally",
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        sa.Column("ok", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in TOKENS),
        sa.PrimaryKeyConstraint("batch_id", "shard", name=op.f("tally_pkey")),
        postgresql_with={"fillfactor": "50"},
    )
    op.execute(
        """
        INSERT INTO tally
        SELECT c.batch_id, 0, sum(c.ok), sum(c.failed), sum(c.prompt_tokens), sum(c.cached_tokens),
               sum(c.completion_tokens), sum(c.reasoning_tokens)
          FROM chunk c JOIN batch b ON b.id = c.batch_id
         WHERE b.state IN ('in_progress', 'finalizing', 'cancelling')
         GROUP BY c.batch_id
        """
    )


def downgrade() -> None:
    op.drop_table("tally")
