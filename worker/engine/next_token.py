"""Gives each row its next token: what its choice wants of the logits, the draw, and back to the choice.

In this order: log-probabilities are taken of the logits as they come (`logprobs`) -> bias, stop tokens held
back, penalties (`adjustment`) -> the watcher's mask -> temperature, truncation, draw (`sampling`). As vLLM does
it, but that there a grammar's mask comes first of all, so that log-probabilities are of what it leaves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from worker.engine import logprobs, sampling
from worker.engine.errors import NothingToSample
from worker.engine.logprobs import TokenLogprob
from worker.engine.rows import UNSURE, DeviceRows, Drawing, Wish
from worker.engine.sampling import Mask
from worker.engine.sequence import Sequence as Choice
from worker.engine.softmax import Ids, Logits


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The next tokens of some choices, on their way from a device; the masks they were drawn under, and the errors of
    watchers that raised one.
    """

    drawing: Drawing
    masks: list[Mask | None]
    outcomes: list[Exception | None]


def advance(logits: Logits, choices: Sequence[Choice]) -> list[Exception | None]:
    """For each row of logits [rows, vocabulary], draw the next token of its choice and let it accept it.

    The outcome of a row is the error that its prompt fails with, NothingToSample or what a watcher raised, or
    else None: then `choice.finish_reason` tells if it has ended. Writes into logits. A row's outcome depends
    on its own logits and choice alone.
    """
    masks, outcomes = _masks(choices)
    _advance_here(logits, choices, masks, outcomes)
    return outcomes


def begin(rows: DeviceRows, choices: Sequence[Choice]) -> Drawn:
    """As `advance`, of rows that lie on a device, but that nobody waits for the tokens."""
    masks, outcomes = _masks(choices)
    wishes = [
        Wish(choice.next_draw, choice.adjustment, mask, choice.top_logprobs)
        for choice, mask in zip(choices, masks, strict=True)
    ]
    return Drawn(rows.draw(wishes), masks, outcomes)


def accept(drawn: Drawn, choices: Sequence[Choice | None]) -> list[Exception | None]:
    """Let the choices accept what was drawn, those in whose places there is none any more left out. What the device
    was not sure of is drawn here.
    """
    drawing, outcomes = drawn.drawing, list(drawn.outcomes)
    drawing.wait()
    tokens = drawing.tokens.tolist()
    for row, choice in enumerate(choices):
        if choice is not None and outcomes[row] is None and tokens[row] != UNSURE:
            top = choice.top_logprobs
            tell = partial(drawing.logprob, row, top) if top is not None else None
            outcomes[row] = _take(choice, tokens[row], tell)
    left = {row: choice for row, choice in enumerate(choices) if choice is not None and tokens[row] == UNSURE}
    if left:
        errors = [outcomes[row] for row in left]
        _advance_here(drawing.fetch(list(left)), list(left.values()), [drawn.masks[row] for row in left], errors)
        for row, error in zip(left, errors, strict=True):
            outcomes[row] = error
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
            tell = partial(logprobs.read, raw[row], tokens[row], choice.top_logprobs or 0) if row in raw else None
            outcomes[row] = _take(choice, tokens[row], tell)


def _prepare(logits: Logits, choice: Choice, mask: Mask | None) -> Ids | None:
    """Leave of one row what may be drawn; where its mask allows few tokens, tell them, and leave the row."""
    if choice.adjustment is not None:
        choice.adjustment.apply(logits)
    return None if mask is None else sampling.allow(logits, mask)


def _take(choice: Choice, token: int, tell: Callable[[], TokenLogprob] | None) -> Exception | None:
    """Hand a choice its token, with what the model thought of it if that is asked for."""
    try:
        if token == sampling.NO_TOKEN:
            raise NothingToSample("no token can follow: all are masked, or the logits are not numbers")
        choice.accept(token, tell() if tell is not None else None)
    except Exception as error:  # noqa: BLE001  a watcher is others' code
        return error
    return None
