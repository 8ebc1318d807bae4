"""The one error of the embedded servers: a sentence that says what is wrong and what to do."""

import errno
from pathlib import Path
from typing import Self

ADVICE = {
    errno.ENOSPC: "free some space and start again",
    errno.EDQUOT: "free some space and start again",
    errno.ENOLCK: "the folder must be on a disk that can lock files; choose another with GRISTMILL_DATA_DIR",
}


class EmbeddedError(Exception):
    """An embedded server cannot be used; the message is one sentence for the person at the terminal."""

    @classmethod
    def of_system(cls, error: OSError, folder: Path) -> Self:
        """The sentence for a refusal of the operating system while working in `folder`."""
        place = error.filename or folder
        advice = ADVICE.get(error.errno or 0, "choose another data folder with GRISTMILL_DATA_DIR")
        return cls(f"The embedded servers cannot use {place}: {error.strerror or error}; {advice}.")
