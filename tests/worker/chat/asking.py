"""Bodies as a client sends them, and completions as the engine gives them."""

from datetime import UTC, datetime

from worker.chat import Asked, Chat
from worker.engine import Completion, FinishReason

CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def body(**more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": said("Say hello"), **more}


def said(content: object, *, role: str = "user") -> list[dict[str, object]]:
    return [{"role": role, "content": content}]


def ask(chat: Chat, seed_text: str = "batch_1:a", /, **more: object) -> Asked:
    return chat.prompt(body(**more), seed_text=seed_text, created=CREATED)


def completion(
    token_ids: list[int], reason: FinishReason = FinishReason.STOP, *, output_tokens: int | None = None
) -> Completion:
    drawn = len(token_ids) if output_tokens is None else output_tokens
    return Completion(tuple(token_ids), reason, prompt_tokens=7, cached_tokens=3, output_tokens=drawn)
