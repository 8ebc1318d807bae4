"""How long answers turn out to be, so that memory is promised for what is likely and not for what is allowed."""

_FIRST_GUESS = 128.0
_WEIGHT = 0.05
_MARGIN = 1.5


class Lengths:
    """A running mean of the lengths of answers, with a margin. A wrong guess costs a recomputation, no more."""

    def __init__(self) -> None:
        self._mean = _FIRST_GUESS

    def note(self, tokens: int) -> None:
        """An answer has ended."""
        self._mean += _WEIGHT * (tokens - self._mean)

    def expected(self, tokens: int, tokens_max: int) -> int:
        """How many positions a sequence of `tokens` is likely to have at its end, if `tokens_max` is the most."""
        return min(tokens_max, tokens + int(self._mean * _MARGIN) + 1)
