"""What one reader of a stream has been sent, and so what is still to be sent. Pure: pieces in, new text out."""

from jobs.streams import Piece


class Transcript:
    """The text sent so far of each choice. Whatever it returns is sent, once, in order, and never taken back."""

    def __init__(self) -> None:
        self._sent: dict[tuple[int, bool], str] = {}
        """By choice, its thinking apart."""

    def add(self, piece: Piece) -> str:
        """What a piece adds. Nothing, if it is not known to join on to what was sent.

        A line that is begun again is published again, from its start; and where a piece got lost, those behind
        it must wait for the stored answer.
        """
        place = (piece.choice, piece.is_thinking)
        sent = self._sent.get(place, "")
        overlap = len(sent) - piece.start
        if overlap < 0 or piece.text[:overlap] != sent[piece.start : piece.start + len(piece.text)]:
            return ""
        return self._send(place, piece.text[overlap:])

    def rest(self, choice: int, whole: str, *, is_thinking: bool = False) -> str:
        """What the stored answer has beyond what was sent; where they differ, what follows their common beginning."""
        place = (choice, is_thinking)
        sent = self._sent.get(place, "")
        agreed = len(sent) if whole.startswith(sent) else _difference(sent, whole)
        self._sent[place] = sent[:agreed]
        return self._send(place, whole[agreed:])

    def _send(self, place: tuple[int, bool], text: str) -> str:
        self._sent[place] = self._sent.get(place, "") + text
        return text


def _difference(one: str, other: str) -> int:
    """Where two texts part."""
    parts = (place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(parts, min(len(one), len(other)))
