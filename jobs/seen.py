"""Texts that were seen before, told from new ones, in a few bytes each. Pure."""

import hashlib
import struct
from array import array

HALVES = struct.Struct("<QQ")


class Seen:
    """A set of up to `capacity` texts that can only say whether a text is new; 16 to 32 bytes for each.

    Of each text's digest of 128 bits, the first half says where in a table it stands and the second is kept
    there. That two of a million texts are taken for one has a chance of about 1 in 10^13; a plain set of
    the texts would take six times the memory.
    """

    def __init__(self, capacity: int) -> None:
        size = 1 << (2 * capacity - 1).bit_length()  # never more than half full, so that places are found soon
        self._kept = array("Q", bytes(8 * size))
        self._mask = size - 1

    def add(self, text: str) -> bool:
        """Take in a text; False if it was there."""
        place, kept = HALVES.unpack(hashlib.blake2b(text.encode(), digest_size=16).digest())
        kept = kept or 1  # a zero says that nothing is there
        table, mask = self._kept, self._mask
        place &= mask
        while found := table[place]:
            if found == kept:
                return False
            place = (place + 1) & mask
        table[place] = kept
        return True
