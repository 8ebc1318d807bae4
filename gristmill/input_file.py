"""The input file of a batch as it will be sent: read once, hashed, and with another model if that was asked."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from gristmill.faults import Fault


@dataclass(frozen=True, slots=True)
class InputFile:
    """What is sent; `digest` names its contents."""

    content: BinaryIO
    digest: str
    model: str | None
    """Of the first line that can be read; None if no line names one."""


@contextmanager
def prepare(path: Path, *, model: str | None, scratch: Path) -> Iterator[InputFile]:
    """Read the file, for as long as it is needed. Fault in a sentence if there is nothing in it to send.

    With a `model` every line that can be read is rewritten to ask it, into an unnamed file in `scratch`; lines
    that cannot be read pass unchanged, for the server to find fault with.
    """
    _refuse(path)
    with path.open("rb") as source:
        if model is None:
            yield _hashed(source)
            return
        with tempfile.TemporaryFile(dir=scratch) as rewritten:
            for line in source:
                rewritten.write(with_model(line, model))
            yield _hashed(cast("BinaryIO", rewritten))


def with_model(line: bytes, model: str) -> bytes:
    """A line that asks `model`; one that cannot be read is given back as it is."""
    request = _request(line)
    if request is None:
        return line
    request["body"]["model"] = model
    return json.dumps(request).encode() + b"\n"


def _hashed(content: BinaryIO) -> InputFile:
    digest, model = hashlib.sha256(), None
    content.seek(0)
    for line in content:
        digest.update(line)
        if model is None and (request := _request(line)) is not None:
            named = request["body"].get("model")
            model = named if isinstance(named, str) else None
    content.seek(0)
    return InputFile(content, digest.hexdigest(), model)


def _request(line: bytes) -> dict[str, Any] | None:
    """A line as an object with a body; None if it is not one."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(request, dict) and isinstance(request.get("body"), dict):
        return cast("dict[str, Any]", request)
    return None


def _refuse(path: Path) -> None:
    if not path.exists():
        raise Fault(f"There is no file {path}.")
    if not path.is_file():
        raise Fault(f"{path} is not a file.")
    if path.stat().st_size == 0:
        raise Fault(f"{path} is empty; it needs one request a line.")
