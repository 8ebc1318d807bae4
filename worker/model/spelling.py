"""What the tokens of a vocabulary stand for, in bytes: it depends on how their tokenizer writes text."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import tokenizers

from worker.model import byte_level
from worker.model.errors import UnsupportedModel

_BYTE: Final = re.compile("<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Spelling:
    """The bytes of a token by its name."""

    piece: Callable[[str], bytes]
    whole: Callable[[str], bytes]  # of a token that text is cut at before all else


def of(backend: tokenizers.Tokenizer) -> Spelling:
    """How a tokenizer joins its tokens. Raises UnsupportedModel for a way that is not known."""
    steps = list(_steps(backend))
    kinds = {str(step.get("type")) for step in steps}
    if "ByteLevel" in kinds:
        return Spelling(byte_level.token_bytes, str.encode)
    space = next((sign for step in steps if (sign := _space(step))), None)
    if space is None or not kinds <= {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}:
        raise UnsupportedModel(
            f"the tokenizer writes text by {', '.join(sorted(kinds)) or 'nothing'}, which is not supported; "
            "supported: ByteLevel, Metaspace, Replace with ByteFallback"
        )
    spell = partial(_piece_bytes, space=space, has_bytes="ByteFallback" in kinds)
    return Spelling(spell, spell)


def _piece_bytes(token: str, *, space: str, has_bytes: bool) -> bytes:
    if has_bytes and (found := _BYTE.fullmatch(token)):
        return bytes([int(found[1], 16)])
    return token.replace(space, " ").encode()


def _steps(backend: tokenizers.Tokenizer) -> Iterator[dict[str, Any]]:
    if backend.decoder is None:
        return
    whole = json.loads(backend.decoder.__getstate__())
    yield from whole["decoders"] if whole["type"] == "Sequence" else [whole]


def _space(step: dict[str, Any]) -> str | None:
    """The sign that stands for a space."""
    if step.get("type") == "Metaspace":
        return str(step["replacement"])
    is_space = step.get("type") == "Replace" and step.get("content") == " "
    return step["pattern"].get("String") if is_space else None
