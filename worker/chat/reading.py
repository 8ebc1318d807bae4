"""What a choice's tokens say: thinking, text, calls; and the reason of its end on the wire."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import Final

from worker.chat import stops
from worker.chat.answer import AnsweredChoice
from worker.chat.logprobs import logprobs_of
from worker.chat.reasoning import Split, Thoughts
from worker.chat.tools.calls import BLANKS, Call
from worker.chat.tools.families import Family
from worker.chat.tools.offer import Offer
from worker.engine import Completion, FinishReason
from worker.model import Tokenizer

_NO_THINKING: Final = Split((), tokens=0, start=0)


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to one body are to be read."""

    stops: tuple[bytes, ...]
    thoughts: Thoughts | None
    offer: Offer | None
    call_id: Callable[[int, int], str]
    """Of a call, by its choice and its place there."""


def read(
    completion: Completion,
    choice: int,
    how: Reading,
    *,
    tokenizer: Tokenizer,
    family: Family,
    call_bytes: Sequence[bytes],
) -> AnsweredChoice:
    """Bytes that are not UTF-8, as where a sign is cut by the length, are replaced in the text."""
    split = how.thoughts.split(completion.token_ids, tokenizer.token_bytes) if how.thoughts else _NO_THINKING
    answer = _without(completion, split.start)
    written = _written(answer, how.stops, tokenizer.token_bytes)
    drops_space = how.thoughts is None and tokenizer.drops_first_space
    content: str | None = _told(written, drops_space=drops_space)
    calls: list[Call] = []
    if how.offer is not None:
        said, calls = how.offer.read(_told(_written(answer, how.stops, call_bytes), drops_space=drops_space), family)
        content = said or None if calls else said
    return AnsweredChoice(
        content=content,
        finish_reason=_reason(completion.finish_reason, how.offer if calls else None),
        logprobs=logprobs_of(answer, tokenizer, text_bytes=len(written)),
        reasoning=_thinking(split.thinking, tokenizer),
        reasoning_tokens=split.tokens,
        calls=_on_the_wire(calls, choice, how),
    )


def _without(completion: Completion, tokens: int) -> Completion:
    """What was written behind the first tokens."""
    logprobs = completion.logprobs
    return replace(
        completion,
        token_ids=completion.token_ids[tokens:],
        logprobs=None if logprobs is None else logprobs[tokens:],
    )


def _written(completion: Completion, ends: Sequence[bytes], token_bytes: Sequence[bytes]) -> bytes:
    return stops.cut(b"".join([token_bytes[index] for index in completion.token_ids]), ends)


def _told(written: bytes, *, drops_space: bool) -> str:
    text = written.decode("utf-8", "replace")
    return text.removeprefix(" ") if drops_space else text


def _thinking(token_ids: Sequence[int], tokenizer: Tokenizer) -> str | None:
    """Without blanks around it."""
    thought = dropwhile(lambda index: tokenizer.token_bytes[index].isspace(), token_ids)
    return tokenizer.decode(list(thought)).rstrip(BLANKS) or None


def _reason(reason: FinishReason, called: Offer | None) -> str:
    """As OpenAI has it, `stop` where the body itself said what to call."""
    if reason is not FinishReason.STOP or called is None or called.is_named:
        return reason.value
    return "function_call" if called.is_legacy else "tool_calls"


def _on_the_wire(calls: Sequence[Call], choice: int, how: Reading) -> dict[str, object]:
    if not calls or how.offer is None:
        return {}
    functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
    if how.offer.is_legacy:
        return {"function_call": functions[0]}
    return {
        "tool_calls": [
            {"id": how.call_id(choice, place), "type": "function", "function": function}
            for place, function in enumerate(functions)
        ]
    }
