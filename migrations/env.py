"""How Alembic runs our revisions: on the connection that `jobs.migrate` hands it."""

from alembic import context

from jobs.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
