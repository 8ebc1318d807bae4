"""Text: messages to token ids, and token ids back to the answer a client expects."""

from worker.chat.answer import Answer, Usage
from worker.chat.chat import Asked, Chat, Question

__all__ = ["Answer", "Asked", "Chat", "Question", "Usage"]
