"""The command `gristmill`: which commands there are."""

import click

from gristmill.commands.audit import audit
from gristmill.commands.backup import backup, restore
from gristmill.commands.environment import settings
from gristmill.commands.keys import keys
from gristmill.commands.models import models
from gristmill.commands.projects import projects
from gristmill.commands.remote import cancel, results, status, submit
from gristmill.commands.run import run
from gristmill.commands.serving import api, migrate, worker
from gristmill.commands.up import up
from gristmill.commands.webhooks import webhooks
from gristmill.faults import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gristmill")
def main() -> None:
    """Batch inference for language models: the OpenAI Batch API on machines you own.

    Settings come from the environment, and `gristmill settings` lists them; unset, everything runs on this machine
    and is kept in ~/.local/share/gristmill.
    """


for command in (
    *(run, up, submit, status, results, cancel, models, keys, projects, webhooks),
    *(settings, audit, backup, restore, migrate, api, worker),
):
    main.add_command(command)

if __name__ == "__main__":
    main()
