"""Gives each row its next token: what its choice wants of the logits, the draw, and back to the choice.

In this order: log-probabilities are taken of the logits as they come (`logprobs`) -> bias, stop tokens held
back, penalties (`adjustment`) -> the watcher's mask -> temperature, truncation, draw (`sampling`). As vLLM does
it, but that there a grammar's mask comes first of all, so that log-probabilities are of what it leaves.
"""

from collections.abc import Sequence

import numpy as np

from worker.engine import logprobs, sampling
from worker.engine.errors import NothingToSample
from worker.engine.rows import DeviceRows
from worker.engine.sampling import Mask
from worker.engine.sequence import Sequence as Choice
from worker.engine.softmax import Ids, Logits


def advance(logits: Logits | DeviceRows, choices: Sequence[Choice]) -> list[Exception | None]:
    """For each row of logits [rows, vocabulary], draw the next token of its choice and let it accept it.

    The outcome of a row is the error that its prompt fails with, NothingToSample or what a watcher raised, or
    else None: then `choice.finish_reason` tells if it has ended. Writes into logits. A row's outcome depends
    on its own logits and choice alone. Of rows that lie on a device, those come here whose logits are changed or told.
    """
    masks, outcomes = _masks(choices)
    if isinstance(logits, np.ndarray):
        _advance_here(logits, choices, masks, outcomes)
        return outcomes
    are_plain = [mask is None and _is_plain(choice) for mask, choice in zip(masks, choices, strict=True)]
    plain = [row for row, is_plain in enumerate(are_plain) if is_plain]
    others = [row for row, is_plain in enumerate(are_plain) if not is_plain]
    drawn = logits.draw(plain, [choices[row].next_draw for row in plain]).tolist() if plain else []
    if others:
        fetched = [outcomes[row] for row in others]
        _advance_here(logits.fetch(others), [choices[row] for row in others], [masks[row] for row in others], fetched)
        for row, outcome in zip(others, fetched, strict=True):
            outcomes[row] = outcome
    for row, token in zip(plain, drawn, strict=True):
        if outcomes[row] is None:
            outcomes[row] = _take(choices[row], token, None)
    return outcomes


def _masks(choices: Sequence[Choice]) -> tuple[list[Mask | None], list[Exception | None]]:
    """What each choice's watcher allows, and the error of those that raised one."""
    masks: list[Mask | None] = [None] * len(choices)
    outcomes: list[Exception | None] = [None] * len(choices)
    for row, choice in enumerate(choices):
        try:
            masks[row] = choice.watcher.mask() if choice.watcher is not None else None
        except Exception as error:  # noqa: BLE001  a watcher is others' code
            outcomes[row] = error
    return masks, outcomes


def _is_plain(choice: Choice) -> bool:
    """Nothing is changed in its logits, and nothing of them told."""
    return choice.adjustment is None and choice.top_logprobs is None


def _advance_here(
    logits: Logits, choices: Sequence[Choice], masks: Sequence[Mask | None], outcomes: list[Exception | None]
) -> None:
    """Fill in the outcomes of those that have none."""
    raw = {row: logits[row].copy() for row, choice in enumerate(choices) if choice.top_logprobs is not None}
    among: dict[int, Ids] = {}
    for row, choice in enumerate(choices):
        try:
            if (few := _prepare(logits[row], choice, masks[row])) is not None:
                among[row] = few
        except Exception as error:  # noqa: BLE001  a mask is others' code
            outcomes[row] = error
    only = {row for row, ids in among.items() if len(ids) == 1}
    draws = [None if row in only else choice.next_draw for row, choice in enumerate(choices)]
    tokens = sampling.sample(logits, draws, among).tolist()
    for row, choice in enumerate(choices):
        if outcomes[row] is None:
            outcomes[row] = _take(choice, tokens[row], raw.get(row))


def _prepare(logits: Logits, choice: Choice, mask: Mask | None) -> Ids | None:
    """Leave of one row what may be drawn; where its mask allows few tokens, tell them, and leave the row."""
    if choice.adjustment is not None:
        choice.adjustment.apply(logits)
    return None if mask is None else sampling.allow(logits, mask)


def _take(choice: Choice, token: int, raw: Logits | None) -> Exception | None:
    """Hand a choice its token, with what the model thought of it if the row as it came is at hand."""
    try:
        if token == sampling.NO_TOKEN:
            raise NothingToSample("no token can follow: all are masked, or the logits are not numbers")
        logprob = None if raw is None else logprobs.read(raw, token, choice.top_logprobs or 0)
        choice.accept(token, logprob)
    except Exception as error:  # noqa: BLE001  a watcher is others' code
        return error
    return None
