"""Which bytes of a file a request is for: the header `Range`, as RFC 9110 §14 has it. Pure."""

import re
from dataclasses import dataclass

from jobs.errors import Refusal

ONE_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


class Unsatisfiable(Refusal):
    """None of the bytes asked for is there."""

    status = 416

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"Invalid 'Range': the file has {size_bytes} bytes.", code="invalid_range", param="Range")
        self.size_bytes = size_bytes


@dataclass(frozen=True, slots=True)
class Stretch:
    """The bytes from `start` up to `stop`."""

    start: int
    stop: int


def stretch_of(header: str | None, size_bytes: int) -> Stretch | None:
    """What is asked for, None where it is the whole file. Unsatisfiable where nothing of it is there.

    What is no range in bytes is as good as none, and so are several at once: a server may answer either with all.
    """
    match = None if header is None else ONE_RANGE.fullmatch(header)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":  # the last so many bytes
        start, stop = max(size_bytes - int(last), 0), size_bytes
    else:
        start, stop = int(first), min(int(last) + 1 if last else size_bytes, size_bytes)
        if last and int(last) < start:
            return None
    if start >= stop:
        raise Unsatisfiable(size_bytes)
    return Stretch(start, stop)
