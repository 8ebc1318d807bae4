"""Where the command starts: loading it takes about a second, and Ctrl-C must be answered from the first moment."""

import sys
from typing import Final

_INTERRUPTED: Final = 130  # as `faults` has it, which is among what takes long to load


def main() -> None:
    """Load the command and run it."""
    try:
        from gristmill import cli
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)  # noqa: T201
        raise SystemExit(_INTERRUPTED) from None
    cli.main()


if __name__ == "__main__":
    main()
