"""The body of an answer on the wire, with every key that OpenAI sends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from worker.engine import Completion


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one line: the prompt counts once, the completion over all choices."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes into the ledger for one line."""

    body: str
    """JSON."""
    usage: Usage


@dataclass(frozen=True, slots=True)
class AnsweredChoice:
    """What one choice says; `logprobs` and `calls`, keys of the message, are on the wire already."""

    content: str | None
    finish_reason: str
    logprobs: dict[str, object] | None
    reasoning: str | None = None
    reasoning_tokens: int = 0
    calls: Mapping[str, object] = field(default_factory=dict)


def usage_of(completions: Sequence[Completion], choices: Sequence[AnsweredChoice]) -> Usage:
    return Usage(
        prompt_tokens=completions[0].prompt_tokens,
        cached_tokens=completions[0].cached_tokens,
        completion_tokens=sum(completion.output_tokens for completion in completions),
        reasoning_tokens=sum(choice.reasoning_tokens for choice in choices),
    )


def completion_json(
    *,
    answer_id: str,
    created_at: int,
    model: str,
    fingerprint: str,
    choices: Sequence[AnsweredChoice],
    usage: Usage,
) -> str:
    """A `chat.completion`."""
    return orjson.dumps(
        {
            "id": answer_id,
            "object": "chat.completion",
            "created": created_at,
            "model": model,
            "choices": [_choice(index, choice) for index, choice in enumerate(choices)],
            "usage": _usage(usage),
            "service_tier": "default",
            "system_fingerprint": fingerprint,
        }
    ).decode()


def _choice(index: int, choice: AnsweredChoice) -> dict[str, object]:
    return {
        "index": index,
        "message": _message(choice),
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
    }


def _message(choice: AnsweredChoice) -> dict[str, object]:
    """Thinking has two names, DeepSeek's and vLLM's; OpenAI has none for it."""
    thoughts = {"reasoning_content": choice.reasoning, "reasoning": choice.reasoning} if choice.reasoning else {}
    said: dict[str, object] = {"role": "assistant", "content": choice.content, "refusal": None, "annotations": []}
    return {**said, **thoughts, **choice.calls}


def _usage(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
