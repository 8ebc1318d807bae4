"""Gives each row its next token."""

from collections.abc import Sequence

from worker.engine import sampling
from worker.engine.errors import NothingToSample
from worker.engine.sampling import Logits
from worker.engine.sequence import Sequence as Choice


def advance(logits: Logits, choices: Sequence[Choice]) -> list[Exception | None]:
    """For each row: mask, draw, let the choice accept the token. The outcome is the error its prompt fails with."""
    outcomes: list[Exception | None] = [None] * len(choices)
    for row, choice in enumerate(choices):
        if choice.watcher is not None:
            try:
                mask = choice.watcher.mask()
                if mask is not None:
                    sampling.allow_only(logits[row], mask)
            except Exception as error:  # noqa: BLE001  a watcher is others' code
                outcomes[row] = error
    tokens = sampling.sample(logits, [choice.next_draw for choice in choices])
    for row, (choice, token) in enumerate(zip(choices, tokens.tolist(), strict=True)):
        if outcomes[row] is None:
            try:
                if token == sampling.NO_TOKEN:
                    raise NothingToSample("no token can follow: all are masked, or the logits are not numbers")
                choice.accept(token)
            except Exception as error:  # noqa: BLE001  a watcher is others' code
                outcomes[row] = error
    return outcomes
