"""The order of work: lines that begin alike stand together, so that a worker computes the beginning once.

Pure: keys and numbers in, chunks out. Knows nothing of tokens; text that begins alike is close enough.
"""

import hashlib
from collections.abc import Sequence

KEY_SIZE = 32
DEPTHS = (64, 256, 1024, 4096)  # characters of text at which two lines are compared


def prefix_key(messages: object) -> bytes:
    """32 bytes that sort lines by what they share: one hash of 8 for each depth of the messages' text.

    Two lines whose first 1,024 characters are equal have equal first 24 bytes, so sorting puts each
    group together and, inside it, each of its sub-groups. The size does not grow with the text, which
    keeps the order of a million lines in 32 MB.
    """
    shown = _beginning(messages, DEPTHS[-1])
    return b"".join(hashlib.blake2b(shown[:depth].encode(), digest_size=8).digest() for depth in DEPTHS)


def chunks(keys: Sequence[bytes], line_numbers: Sequence[int], size: int) -> list[list[int]]:
    """Line numbers in the order of work, cut into chunks of up to `size`.

    Groups come in the order of their first line in the file, and lines inside a group likewise, so that
    a file without shared text is worked from its top.
    """
    first_seen: dict[bytes, int] = {}
    for place, key in enumerate(keys):
        for depth in range(8, KEY_SIZE + 1, 8):
            first_seen.setdefault(key[:depth], place)

    def rank(place: int) -> tuple[int, ...]:
        return (*(first_seen[keys[place][:depth]] for depth in range(8, KEY_SIZE + 1, 8)), place)

    ordered = [line_numbers[place] for place in sorted(range(len(keys)), key=rank)]
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _beginning(messages: object, characters_max: int) -> str:
    """The roles and texts of messages, as far as `characters_max`; what is malformed counts as empty."""
    shown = ""
    for message in messages if isinstance(messages, list) else ():
        if len(shown) >= characters_max:
            break
        if isinstance(message, dict):
            content = message.get("content")
            said = content if isinstance(content, str) else repr(content)
            shown += f"\x1e{message.get('role')}\x1f{said[:characters_max]}"
    return shown[:characters_max]
