"""What a command says when it cannot go on: one sentence on standard error and exit status 2, never a traceback."""

import sys
from typing import Any

import click
import httpx
import sqlalchemy

from gristmill.client import ApiError
from gristmill.embedded import EmbeddedError
from jobs.errors import Refusal
from jobs.settings import SettingsError
from worker.model.errors import ModelError

EXIT_SOME_FAILED = 1
EXIT_COULD_NOT_RUN = 2
EXIT_INTERRUPTED = 130


class Fault(click.ClickException):
    """A sentence for the person at the terminal."""

    exit_code = EXIT_COULD_NOT_RUN


class Group(click.Group):
    """Commands whose known errors become a sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; whatever we can name ends it with a Fault, and Ctrl-C with status 130."""
        try:
            return super().invoke(ctx)
        except (SettingsError, EmbeddedError, ModelError, ApiError, Refusal) as error:
            raise Fault(str(error)) from error
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise Fault(f"The database cannot be used: {_first_line(error)}") from error
        except httpx.HTTPError as error:
            raise Fault(f"The server cannot be used: {_first_line(error)}") from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            place = f"{error.filename}: " if error.filename else ""
            raise Fault(f"{place}{error.strerror or error}.") from error
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            sys.exit(EXIT_INTERRUPTED)


def _first_line(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
