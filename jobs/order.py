"""The order of work: lines that begin alike stand together, so that a worker computes the beginning once.

Pure: messages and numbers in, chunks out. Knows nothing of tokens; text that begins alike is close enough.
"""

from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

DEPTHS = (64, 256, 1024, 4096)  # characters of text at which two lines are compared
SHOWN_MAX = DEPTHS[-1]


class Order:
    """Collects the lines of one batch and gives them out in the order of work.

    For each line it keeps one number of 64 bits a depth and its own number, whatever the text's length:
    36 bytes, and about as many again while it sorts: 80 MB for a million lines.
    """

    def __init__(self) -> None:
        self._line_numbers = array("i")
        self._keys = array("q")

    def __len__(self) -> int:
        return len(self._line_numbers)

    def add(self, line_no: int, messages: object) -> None:
        """Take in a line; lines come with growing numbers."""
        self._line_numbers.append(line_no)
        self._keys.extend(_keys(_beginning(messages)))

    def chunks(self, size: int) -> Iterator[list[int]]:
        """Line numbers in the order of work, cut into chunks of up to `size`.

        Groups come in the order of their first line in the file, and lines inside a group likewise, so that
        a file without shared text is worked from its top.
        """
        places = _ranked(np.frombuffer(self._keys, dtype=np.int64).reshape(-1, len(DEPTHS)))
        ordered = np.frombuffer(self._line_numbers, dtype=np.intc)[places]
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size].tolist()


def _keys(shown: str) -> tuple[int, int, int, int]:
    """A number for each depth: equal for lines that are equal up to there, whatever follows.

    Python's own hash will do: it differs between processes, but the order does not depend on the numbers,
    only on which are equal; should two groups ever share one, they are merely worked side by side.
    """
    whole = hash(shown)
    size = len(shown)
    return (
        hash(shown[:64]) if size > 64 else whole,
        hash(shown[:256]) if size > 256 else whole,
        hash(shown[:1024]) if size > 1024 else whole,
        whole,
    )


def _ranked(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The places [lines] of keys [lines, depths], sorted by the first place of their group at each depth.

    A stable sort by the deepest group, then by the one above it, and so on: each keeps what the last made.
    """
    places = np.arange(len(keys))
    for depth in reversed(range(keys.shape[1])):
        first = _first_places(keys[:, depth])
        places = places[np.argsort(first[places], kind="stable")]
    return places


def _first_places(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """For each of keys [lines] the place at which the same key stands for the first time."""
    by_key = np.argsort(keys, kind="stable").astype(np.int32)
    ranked = keys[by_key]
    starts = np.zeros(len(keys), dtype=np.int32)  # for each place in `by_key`, where its group begins there
    np.multiply(np.arange(1, len(keys), dtype=np.int32), ranked[1:] != ranked[:-1], out=starts[1:])
    first = np.empty(len(keys), dtype=np.int32)
    first[by_key] = by_key[np.maximum.accumulate(starts, out=starts)]
    return first


def _beginning(messages: object) -> str:
    """The roles and texts of messages, as far as SHOWN_MAX characters; what is malformed counts as empty."""
    shown = ""
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            content = message.get("content")
            said = content if isinstance(content, str) else repr(content)
            shown += f"\x1e{message.get('role')}\x1f{said[:SHOWN_MAX]}"
        if len(shown) >= SHOWN_MAX:
            return shown[:SHOWN_MAX]
    return shown
