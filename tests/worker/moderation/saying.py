"""What is said to a judge, and what it says."""

from worker.moderation.conversation import Conversation, Speaker, Turn
from worker.moderation.judge import Judge


def said(*texts: str, fresh: int = 0) -> Conversation:
    """Turns of the user and of the assistant, one after the other."""
    speakers = (Speaker.USER, Speaker.AGENT)
    return Conversation(tuple(Turn(speakers[place % 2], text) for place, text in enumerate(texts)), fresh)


def verdict(judge: Judge, text: str) -> set[str]:
    return set(judge.judge(said(text)).result(10))
